"""Random inputs for measuring and checking a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exporter.functionalize import TensorSpec


def sample_inputs(inputs: Sequence[TensorSpec], n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """n random examples of each input: floats of variance 1; integers 0 or 1, valid as indices of any table."""
    rng = np.random.default_rng(seed)
    samples = []
    for spec in inputs:
        shape, dtype = (n, *(size or 1 for size in spec.shape[1:])), np.dtype(spec.dtype)
        values = rng.standard_normal(shape) if np.issubdtype(dtype, np.floating) else rng.integers(0, 2, shape)
        samples.append(values.astype(dtype))
    return tuple(samples)
