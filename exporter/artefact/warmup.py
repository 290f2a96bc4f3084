"""Which requests reach every program of a SavedModel, so that servers can compile them before they are available."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.shared import manifest_signature
from serving.shared.warmup_file import request_of_one_value

_SIDE = re.compile("^x[12]?(?=_|$)")  # of an input's name
_OTHER_SIDE = re.compile("^x2(_|$)")


def requests(
    functions: Mapping[str, Any], counts: Mapping[str, Sequence[int]], example: Mapping[str, np.ndarray] | None = None
) -> Iterator[Any]:
    """The warmup requests, PredictRequests.

    Args:
      functions: the signatures as concrete functions, by name.
      counts: for each signature's name the numbers of examples of its requests; of the side x2 there is one at most.
      example: of a model that cannot be asked for zeros a batch of one for each input of the side x, by its name. Its
        first value is asked for, and its sizes are taken where the signature leaves them open.
    """
    example = example or {}
    # First one that a server refuses which joins requests of several callers: see `serving.shared.manifest_signature`.
    yield request_of_one_value(manifest_signature.SIGNATURE, {"key": tf.TensorSpec([], tf.string)})
    for name, numbers in counts.items():
        specs = functions[name].structured_input_signature[1]
        given = {key: example[_SIDE.sub("x", key)] for key in specs if _SIDE.sub("x", key) in example}
        values = {key: array.flat[0] for key, array in given.items()}
        for n in numbers:
            shapes = {
                key: [n, *given[key].shape[1:]] if key in given else [n if d is None else d for d in spec.shape]
                for key, spec in specs.items()
            }
            for key in filter(_OTHER_SIDE.match, shapes):
                shapes[key][0] = min(n, 1)
            inputs = {key: tf.TensorSpec(shapes[key], spec.dtype) for key, spec in specs.items()}
            yield request_of_one_value(name, inputs, values)
