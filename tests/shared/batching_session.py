"""What TF Serving does to requests with --enable_batching (batching_session.cc), on a SavedModel in this process."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class Refused(Exception):
    """The server's INVALID_ARGUMENT."""


def run_batch(
    signature: Any, requests: Sequence[Mapping[str, np.ndarray]], allowed: Sequence[int] = ()
) -> list[np.ndarray]:
    """Answers several requests by one call: joined along axis 0, padded with the last one's row 0, and split again."""
    counts = [_size(request) for request in requests]
    total = sum(counts)
    if allowed and total > allowed[-1]:
        raise Refused(f"Task size {total} is larger than maximum input batch size {allowed[-1]}")
    padding = (allowed[bisect.bisect_left(allowed, total)] if allowed else total) - total
    merged = {
        key: np.concatenate([*(request[key] for request in requests), *[requests[-1][key][:1]] * padding])
        for key in requests[0]
    }
    (output,) = signature(**{key: tf.constant(array) for key, array in merged.items()}).values()
    if len(output) != total + padding:
        raise Refused("Batched output tensor's 0th dimension does not equal the sum of the inputs'")
    return np.split(np.asarray(output), np.cumsum(counts))[:-1]


def _size(request: Mapping[str, np.ndarray]) -> int:
    if not request:
        raise Refused("Batching Run() must have at least one input tensor")
    if any(np.ndim(array) == 0 for array in request.values()):
        raise Refused("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in request.values()}
    if len(sizes) > 1:
        raise Refused("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()
