"""The derivative of depthwise convolutions by their kernels, which XLA:CPU is slow at as products of matrices.

    G[r, k, c, j] = Σ_{b, o} a[b, o * stride + k * dilation, c] D[r, b, o, c, j]

for taps k, positions o and outputs r of the model is a product of small matrices for each channel c. For each of these
XLA:CPU begins anew, with data and derivatives that it first copies, one number after the other, so that channels come
first. The sum as it stands, over positions, is of channels that lie next to each other, and takes a fraction of that.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.layerwise.patches import sliced
from exporter.ntk.layerwise.window import Window, unraveled

Array = Any

POSITIONS = 8  # that are written out; over more is a loop
ROWS = 4  # of positions, along the first axis, that are added up one after the other at least
# Where G has fewer numbers than this, which stay in the cache, a step takes longer to begin than to run: then rows that
# are far from each other are added up side by side, those of so many groups at most.
NUMBERS = 1 << 14
GROUPS = 32


def by_products(window: Window, a: Array, d: Array) -> Array:
    """G (R, *kernel, C, J) of data (B, *inputs, C) and derivatives (R, B, *outputs, C, J), by matrix products."""
    channels = a.shape[-1]
    patches = sliced(window, channels, a)
    d = d.reshape(d.shape[0], patches.shape[1], channels, -1)
    return jnp.einsum("ctk,rtcj->rkcj", patches, d).reshape(d.shape[0], *window.kernel, channels, -1)


def by_sums(window: Window, a: Array, d: Array) -> Array:
    """The same by a sum over positions, some of the last axis at a time.

    The loop takes these parts of data and derivatives one step ahead: XLA would have the sum look up where each of
    their numbers is, and then make no use of vector instructions.
    """
    if 0 in window.outputs:
        return jnp.zeros((len(d), *window.kernel, *d.shape[-2:]), d.dtype)
    strides, dilations = window.strides, window.dilations
    reach = [(k - 1) * dilation + 1 for k, dilation in zip(window.kernel, dilations, strict=True)]
    outputs = list(window.outputs)
    groups = _side_by_side(outputs[0], len(d) * math.prod((*window.kernel, *d.shape[-2:])))
    outputs[0] = -(-outputs[0] // groups)
    steps = -(-outputs[-1] // POSITIONS)
    size = -(-outputs[-1] // steps)
    outputs[-1] = steps * size
    # Zeros behind what there is make all groups, and all parts, of one size.
    whole = [groups * outputs[0], *outputs[1:]]
    a = window.pad(a, 1)
    for axis, (n, stride, taps) in enumerate(zip(whole, strides, reach, strict=True)):
        a = _lengthened(a, 1 + axis, (n - 1) * stride + taps)
        d = _lengthened(d, 2 + axis, n)
    d = d.reshape(*d.shape[:2], groups, *outputs, *d.shape[-2:])
    begins = [k * outputs[0] * strides[0] for k in range(groups)]
    rows = (outputs[0] - 1) * strides[0] + reach[0]
    a = jnp.stack([lax.slice_in_dim(a, begin, begin + rows, axis=1) for begin in begins])
    along = (size - 1) * strides[-1] + reach[-1]
    ones = [1] * (len(outputs) - 1)
    sizes = [a.shape[1], *outputs[:-1], steps]
    zero = np.uint32(0)

    def part(number: Array) -> tuple[Array, Array]:
        """The data and the derivatives of this step."""
        batch, *at = unraveled(number, sizes)
        at[-1] = at[-1] * np.uint32(size)
        under = [k * np.uint32(stride) for k, stride in zip(at, strides, strict=True)]
        x = lax.dynamic_slice(a, (zero, batch, *under, zero), (groups, 1, *reach[:-1], along, a.shape[-1]))
        some = (len(d), 1, groups, *ones, size, *d.shape[-2:])
        return x, lax.dynamic_slice(d, (zero, batch, zero, *at, zero, zero), some)

    def under_taps(x: Array, position: int) -> Array:
        """The data (groups, *kernel, C) that the taps meet at a position."""
        x = lax.slice_in_dim(x[:, 0], position * strides[-1], position * strides[-1] + reach[-1], axis=-2)
        return x[:, *(slice(None, None, dilation) for dilation in dilations)]

    def add(number: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, x, some = (value.astype(dtype) for value in state)
        terms = (under_taps(x, k)[..., None] * lax.slice_in_dim(some[:, 0], k, k + 1, axis=-3) for k in range(size))
        return total + sum(terms), *part(number.astype(np.uint32) + np.uint32(1))

    dtype = jnp.promote_types(d.dtype, jnp.float32)
    total = jnp.zeros((len(d), groups, *window.kernel, *d.shape[-2:]), dtype)
    total, *_ = lax.fori_loop(zero, np.uint32(math.prod(sizes)), add, (total, *part(zero)))
    return jnp.sum(total, 1).astype(d.dtype)


def _side_by_side(rows: int, numbers: int) -> int:
    """How many groups of so many rows are added up at a time, to so many numbers each."""
    return max(1, min(NUMBERS // max(1, numbers), rows // ROWS, GROUPS))


def _lengthened(a: Array, axis: int, size: int) -> Array:
    """An array with zeros behind its own numbers along an axis, where it has fewer than `size`."""
    missing = size - a.shape[axis]
    if missing <= 0:
        return a
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, missing)
    return jnp.pad(a, widths)
