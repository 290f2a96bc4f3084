"""Jacobians added to buffers of features: each row of D entries, with its signs, from its shift on.

A buffer has 2 D numbers, so that a row shifted by less than D lies in it in one piece; its halves are added up at the
end. There is one for each example and output, (n, R, 2 D).

Functions are compiled ones, so that they are traced once for all variables of a shape.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.layerwise.drawn import Drawn

Array = Any

FEW_ROWS = 2  # of a variable that are written out, where a loop over them would have more to begin
BLOCK = 1 << 20  # bytes of a Jacobian, of all outputs, that are made of factors at a time
LARGEST_BLOCK = 32 << 20


def folded(buffers: Array) -> Array:
    """The features (..., D) of buffers (..., 2 D)."""
    d = buffers.shape[-1] // 2
    return buffers[..., :d] + buffers[..., d:]


@functools.partial(jax.jit, static_argnames="at_once")
def add_entries(buffers: Array, first: Any, jacobian: Array, drawn: Drawn, *, at_once: bool) -> Array:
    """Buffers with a Jacobian (n, R, ...) added, of entries from the begin of row number `first` on.

    Rows are moved `at_once`, as GPUs do fastest, or one after the other.
    """
    n, r, _ = buffers.shape
    d = drawn.dimensions
    jacobian = jacobian.reshape(n, r, -1)
    full, rest = divmod(jacobian.shape[-1], d)

    def add(buffers: Array, row: Array, part: Array) -> Array:
        signed = jnp.where(drawn.negative(row)[..., : part.shape[-1]], -part, part).astype(buffers.dtype)
        at = (0, 0, drawn.shifts[row])
        there = lax.dynamic_slice(buffers, at, part.shape)
        return lax.dynamic_update_slice(buffers, there + signed, at)

    def add_full(row: Array, buffers: Array) -> Array:
        return add(buffers, first + row, lax.dynamic_slice_in_dim(jacobian, row * d, d, 2))

    if full > FEW_ROWS and at_once:
        buffers = buffers.at[..., :d].add(_rolled_sum(jacobian[..., : full * d], first, drawn).astype(buffers.dtype))
    elif full > FEW_ROWS:
        buffers = lax.fori_loop(0, full, add_full, buffers)
    else:
        for row in range(full):
            buffers = add_full(row, buffers)
    return add(buffers, first + full, jacobian[..., full * d :]) if rest else buffers


def _rolled_sum(jacobian: Array, first: int, drawn: Drawn) -> Array:
    """(n, R, D) of the full rows of a Jacobian (n, R, rows D), with signs and shifts."""
    d = drawn.dimensions
    jacobian = jacobian.reshape(*jacobian.shape[:2], -1, d)
    jacobian = jacobian.astype(jnp.promote_types(jacobian.dtype, jnp.float32))
    rows = first + jnp.arange(jacobian.shape[2])
    signed = jnp.where(jax.vmap(drawn.negative, out_axes=1)(rows), -jacobian, jacobian)
    places = (jnp.arange(d) - drawn.shifts[rows][:, None]) % d
    return jnp.sum(jnp.take_along_axis(signed, places[None, None], 3), 2)


def block_of(columns: int, dimensions: int, bytes_of_entry: int) -> int:
    """How many rows of a matrix's Jacobian, whole rows of D entries together, are made at a time; 0 for none.

    Args:
      columns: of the matrix.
      dimensions: D.
      bytes_of_entry: of an entry for all examples and outputs.
    """
    unit = dimensions // math.gcd(dimensions, columns)
    of_unit = bytes_of_entry * unit * columns
    return 0 if of_unit > LARGEST_BLOCK else unit * max(1, BLOCK // of_unit)


@functools.partial(jax.jit, static_argnames="block")
def add_factors(buffers: Array, first: int, a: Array, d: Array, drawn: Drawn, *, block: int, bias: int | None) -> Array:
    """Buffers with the Jacobian of a matrix (I, J) added, whose entries are made a block at a time.

    Args:
      buffers: (n, R, 2 D).
      first: number of the matrix's first row of D entries.
      a: factors (n, T, I), or (n, T, I + 1) with a bias, of ones.
      d: factors (n, T, R, J).
      drawn: for all rows.
      block: rows of the matrix that are made at a time, which together are whole rows of D entries.
      bias: number of the bias's first row of D entries; None without.
    """
    n, t, i = a.shape
    r, j = d.shape[2:]
    d = d.reshape(n, t, r * j)
    rows = block * j // drawn.dimensions

    def jacobian(a: Array) -> Array:
        g = jnp.einsum("nti,ntq->niq", a, d).reshape(n, -1, r, j)
        return jnp.swapaxes(g, 1, 2)

    def add(k: Array, buffers: Array) -> Array:
        part = jacobian(lax.dynamic_slice_in_dim(a, k * block, block, 2))
        return add_entries(buffers, first + k * rows, part, drawn, at_once=False)

    blocks = (i - (bias is not None)) // block
    if blocks > 1:
        buffers = lax.fori_loop(0, blocks, add, buffers)
    elif blocks:
        buffers = add(0, buffers)
    rest = jacobian(a[:, :, blocks * block :])
    if bias is not None:
        buffers = add_entries(buffers, bias, rest[:, :, -1], drawn, at_once=False)
        rest = rest[:, :, :-1]
    return add_entries(buffers, first + blocks * rows, rest, drawn, at_once=False)


@jax.jit
def add_embedded(buffers: Array, first: int, index: Array, derivative: Array, drawn: Drawn) -> Array:
    """Buffers with the Jacobian of an embedding's table added, which is 0 but for few rows, and never written out.

    Args:
      buffers: (n, R, 2 D).
      first: number of the table's first row of D entries.
      index: (n, T), below 0 for none.
      derivative: (n, R, T, J), or with further axes of size 1.
      drawn: for all rows.
    """
    n, r, _ = buffers.shape
    derivative = derivative.reshape(n, r, index.shape[1], -1)
    j, dimensions = derivative.shape[-1], np.uint32(drawn.dimensions)
    entry = jnp.maximum(index, 0)[..., None].astype(jnp.uint32) * np.uint32(j) + lax.iota(jnp.uint32, j)
    row, place = (entry // dimensions).astype(jnp.int32) + first, (entry % dimensions).astype(jnp.int32)
    signed = jnp.where(jnp.moveaxis(drawn.negative_at(row, place), -1, 1), -derivative, derivative)
    signed = jnp.where((index >= 0)[:, None, :, None], signed, 0).astype(buffers.dtype)

    def scatter(buffer: Array, at: Array, values: Array) -> Array:
        return buffer.at[:, at.reshape(-1)].add(values.reshape(r, -1))

    return jax.vmap(scatter)(buffers, place + drawn.shifts[row], signed)
