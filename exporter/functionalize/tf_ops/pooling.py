"""Max and average pooling over any number of spatial axes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.functionalize.tf_ops.graph import Library
from exporter.functionalize.tf_ops.registry import OpFunction, converts


def _window(node: Any) -> dict[str, Any]:
    if list(node.attr["explicit_paddings"].list.i):
        raise NotImplementedError("its padding is explicit; pad before the pooling")
    return {
        "window_dimensions": tuple(node.attr["ksize"].list.i),
        "window_strides": tuple(node.attr["strides"].list.i),
        "padding": node.attr["padding"].s.decode(),
    }


@converts("MaxPool", "MaxPool3D")
def _max_pool(node: Any, library: Library) -> OpFunction:
    window = _window(node)
    return lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, **window)


@converts("AvgPool", "AvgPool3D")
def _average_pool(node: Any, library: Library) -> OpFunction:
    """Padding does not count: each window is divided by the number of the input's values in it."""
    window = _window(node)

    def pool(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, **window) / jnp.asarray(_counts(x.shape, **window), x.dtype)

    return pool


def _counts(
    shape: tuple[Any, ...], window_dimensions: tuple[int, ...], window_strides: tuple[int, ...], padding: str
) -> np.ndarray:
    """How many input values each window covers; axes that are not pooled have size 1."""
    counts = np.ones((), np.int64)
    for size, width, stride in zip(shape, window_dimensions, window_strides, strict=True):
        if width == stride == 1:
            counts = counts[..., None]
            continue
        ((before, after),) = jax.lax.padtype_to_pads([size], [width], [stride], padding)
        starts = np.arange(0, size + before + after - width + 1, stride) - before
        counts = counts[..., None] * (np.minimum(starts + width, size) - np.maximum(starts, 0))
    return counts
