"""Which requests reach every program of a SavedModel, so that servers can compile them before they are available."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from exporter.artefact import manifest
from exporter.graph.programs import Schedule
from serving.shared.warmup_file import request_of_zeros


def examples_of_requests(signatures: Sequence[str], schedule: Schedule | None) -> dict[str, list[int]]:
    """For each signature the numbers of examples, the same on both sides, of its warmup requests.

    One for each size of block, one that needs more than a block, one that needs more than a tile, and for requests too
    large for these one without examples (see `serve_graph.Kernel`). `ntk_with_params` has the programs of `ntk`, so
    where there is `ntk` one request for its graph will do. A model whose batches are never split gets one request of
    one example.
    """
    examples = {}
    for name in signatures:
        if schedule is None or (name == "ntk_with_params" and "ntk" in signatures):
            examples[name] = [1]
            continue
        blocks = schedule.blocks
        examples[name] = [*blocks.sizes, blocks.sizes[-1] + 1]
        if _programs(name)[-1] == "contract":
            more_than_a_tile = [blocks.tile + 1] if blocks.joined > 1 else []
            examples[name] += [*more_than_a_tile, *([0] if schedule.larger else [])]
    return examples


def count_programs(signatures: Sequence[str], schedule: Schedule | None) -> int | None:
    """How many programs XLA compiles for all requests that there can be; None if one for each number of examples."""
    if schedule is None:
        return None
    kinds = {kind for name in signatures for kind in _programs(name)}
    blocks, more = schedule.blocks, schedule.larger
    larger = len(more.blocks.sizes) + 1 if more and "contract" in kinds else 0
    return sum(len(blocks.contracted if kind == "contract" else blocks.sizes) for kind in kinds) + larger


def _programs(signature: str) -> tuple[str, ...]:
    """The kinds of programs that a signature runs."""
    if signature == "forward":
        return ("forward",)
    return ("features", "diagonal" if signature == "ntk_diagonal" else "contract")


def requests(functions: Mapping[str, Any], examples: Mapping[str, Sequence[int]]) -> Iterator[Any]:
    """The warmup requests, PredictRequests, of signatures given as concrete functions."""
    # First one that a server refuses which joins requests of several callers: see `exporter.artefact.manifest`.
    yield request_of_zeros(manifest.SIGNATURE, {"key": tf.TensorSpec([], tf.string)})
    for name, counts in examples.items():
        specs = functions[name].structured_input_signature[1]
        for n in counts:
            shapes = {key: [n if d is None else d for d in spec.shape] for key, spec in specs.items()}
            yield request_of_zeros(name, {key: tf.TensorSpec(shapes[key], spec.dtype) for key, spec in specs.items()})
