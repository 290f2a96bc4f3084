"""Which requests reach every program of a SavedModel, so that servers can compile them before they are available."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from exporter.artefact import manifest
from serving.shared.warmup_file import request_of_zeros


def requests(functions: Mapping[str, Any], examples: Mapping[str, Sequence[int]]) -> Iterator[Any]:
    """The warmup requests, PredictRequests, of signatures given as concrete functions."""
    # First one that a server refuses which joins requests of several callers: see `exporter.artefact.manifest`.
    yield request_of_zeros(manifest.SIGNATURE, {"key": tf.TensorSpec([], tf.string)})
    for name, counts in examples.items():
        specs = functions[name].structured_input_signature[1]
        for n in counts:
            shapes = {key: [n if d is None else d for d in spec.shape] for key, spec in specs.items()}
            yield request_of_zeros(name, {key: tf.TensorSpec(shapes[key], spec.dtype) for key, spec in specs.items()})
