"""The derivative of depthwise convolutions by their kernels, which XLA:CPU is slow at as products of matrices.

    G[r, k, c, j] = Σ_{b, o} a[b, o * stride + k * dilation, c] D[r, b, o, c, j]

for taps k, positions o and outputs r of the model is a product of small matrices for each channel c. For each of these
XLA:CPU begins anew, with data and derivatives that it first copies, one number after the other, so that channels come
first: in all three to ten times the time of the sum as it stands, over positions, for all channels next to each other.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.layerwise.convolution import Window, sliced

Array = Any

POSITIONS = 8  # that are written out; over more is a loop


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
    strides, dilations = window.strides, window.dilations
    *rows, width = window.outputs
    steps = -(-width // POSITIONS)
    size = -(-width // max(1, steps))
    sizes = [len(a), *rows, steps]
    reach = [(k - 1) * dilation + 1 for k, dilation in zip(window.kernel, dilations, strict=True)]
    along = (size - 1) * strides[-1] + reach[-1]
    a = window.pad(a, 1)
    a = _lengthened(a, -2, (steps - 1) * size * strides[-1] + along)
    d = _lengthened(d, -3, steps * size)
    zero = np.uint32(0)

    def part(number: Array) -> tuple[Array, Array]:
        """The data and the derivatives of this step."""
        index: list[Array] = []
        for n in reversed(sizes):
            index.insert(0, lax.rem(number, np.uint32(n)))
            number = lax.div(number, np.uint32(n))
        batch, *at, step = index
        first = step * np.uint32(size)
        starts = [k * np.uint32(stride) for k, stride in zip([*at, first], strides, strict=True)]
        x = lax.dynamic_slice(a, (batch, *starts, zero), (1, *reach[:-1], along, a.shape[-1]))
        ones = [1] * len(rows)
        d_sizes = (d.shape[0], 1, *ones, size, *d.shape[-2:])
        return x[0], lax.dynamic_slice(d, (zero, batch, *at, first, zero, zero), d_sizes)

    def under(x: Array, position: int) -> Array:
        """The data (*kernel, C) that the taps meet at a position."""
        x = lax.slice_in_dim(x, position * strides[-1], position * strides[-1] + reach[-1], axis=-2)
        return x[tuple(slice(None, None, dilation) for dilation in dilations)]

    def add(number: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, x, some = state
        some = some.reshape(len(some), *[1] * (len(rows)), size, *some.shape[-2:]).astype(total.dtype)
        terms = (
            under(x, k).astype(total.dtype)[..., None] * lax.slice_in_dim(some, k, k + 1, axis=-3) for k in range(size)
        )
        return (total + sum(terms), *part(number.astype(np.uint32) + np.uint32(1)))

    count = math.prod(sizes)
    total = jnp.zeros((len(d), *window.kernel, *d.shape[-2:]), jnp.promote_types(d.dtype, jnp.float32))
    if count == 0:
        return total.astype(d.dtype)
    return lax.fori_loop(zero, np.uint32(count), add, (total, *part(zero)))[0].astype(d.dtype)


def _lengthened(a: Array, axis: int, size: int) -> Array:
    """An array with zeros behind its own numbers along an axis, where it has fewer than `size`."""
    missing = size - a.shape[axis]
    if missing <= 0:
        return a
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, missing)
    return jnp.pad(a, widths)
