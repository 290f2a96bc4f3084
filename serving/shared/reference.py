"""Examples and results that an export records in its manifest, so that whatever serves it can be checked later.

The examples are made from a formula, which any machine and version computes alike, instead of being recorded; but for
models that need others, texts say. These are recorded.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_RECORDED = 32  # values of each result
_MOST_BYTES = 1 << 20  # of recorded examples: the manifest is also sent to clients


def examples(inputs: Iterable[tuple[Sequence[int | None], str]], n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """n examples for a model's inputs, each given by shape (the batch axis first) and dtype; others for each seed.

    Floats are odd multiples of 1/128 between -2 and 2, which every floating type holds exactly; integers are 0 or 1,
    which are indices of any table, and booleans either. An axis of unknown size gets size 1.
    """
    return tuple(
        _example((seed << 52) + (k << 40), (n, *(size or 1 for size in shape[1:])), dtype)
        for k, (shape, dtype) in enumerate(inputs)
    )


def few(n: int) -> int:
    """How many of n examples are x2 where x1 is all of them."""
    return n // 2 + 1


def record_examples(arrays: Sequence[np.ndarray]) -> list[Any] | None:
    """Examples of each input as JSON can have them; None if they are too large to be kept."""
    recorded: list[Any] = []
    for array in arrays:
        if array.dtype == object:
            content: Any = [base64.b64encode(text).decode() for text in array.flat]
        else:
            content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        dtype = "string" if array.dtype == object else array.dtype.name
        recorded.append({"shape": list(array.shape), "dtype": dtype, "b64": content})
    return recorded if len(json.dumps(recorded)) <= _MOST_BYTES else None


def recorded_examples(recorded: Iterable[Mapping[str, Any]]) -> tuple[np.ndarray, ...]:
    """The arrays that `record_examples` recorded; texts as bytes."""
    arrays: list[np.ndarray] = []
    for entry in recorded:
        if entry["dtype"] == "string":
            array = np.empty(len(entry["b64"]), object)
            array[:] = [base64.b64decode(text) for text in entry["b64"]]
        else:
            array = np.frombuffer(base64.b64decode(entry["b64"]), entry["dtype"])
        arrays.append(array.reshape(entry["shape"]))
    return tuple(arrays)


def random_bits(count: int, seed: int) -> np.ndarray:
    """`count` random numbers of 64 bits, which any machine and version computes alike; others for each seed."""
    return _splitmix64(np.arange(count, dtype=np.uint64) + (np.uint64(seed) << np.uint64(40)))


def _example(first: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    bits = _splitmix64(np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(first)) >> np.uint64(56)
    integral = np.dtype(dtype).kind in "biu"
    values = bits & np.uint64(1) if integral else (2.0 * bits - 255) / 128
    return values.astype(dtype).reshape(shape)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Well mixed bits for each number (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195)."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def record(result: np.ndarray) -> dict[str, Any]:
    """What is kept of a result: its shape, some of its values in equal distances, and the largest absolute value."""
    return {
        "shape": list(result.shape),
        "values": [float(v) for v in result.ravel()[_places(result.size)]],
        "largest": float(np.max(np.abs(result), initial=0.0)),
    }


def difference(recorded: Mapping[str, Any], result: np.ndarray) -> float:
    """The largest difference of a result from what was recorded, relative to the largest value.

    Infinite if shapes differ, or values are not finite.
    """
    if list(result.shape) != list(recorded["shape"]):
        return math.inf
    values = np.asarray(result, np.float64).ravel()[_places(result.size)]
    if not np.all(np.isfinite(values)):
        return math.inf
    worst = float(np.max(np.abs(values - recorded["values"]), initial=0.0))
    return worst / recorded["largest"] if recorded["largest"] else worst


def _places(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, _RECORDED)).astype(int)) if size else np.zeros(0, int)
