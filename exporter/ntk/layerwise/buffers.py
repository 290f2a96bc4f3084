"""Jacobians added to buffers of features: each row of D entries, with its signs, from its shift on.

A buffer has 2 D numbers, so that a row shifted by less than D lies in it in one piece; its halves are added up at the
end. There is one for each example and output, (n, R, 2 D).

XLA compiles each operation on its own, and of most variables of a deep model the last row has not all entries. These
rows wait until all are there, one after the other in one array, and those of about a width are added in one loop.

Functions are compiled ones, so that they are traced once for all variables of a shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.layerwise.drawn import Drawn

Array = Any

FEW_ROWS = 2  # of a variable that wait with its last one, where a loop over them would have more to begin
FEWEST_WAITING = 4  # rows of about a width that a loop is for; fewer are added with wider ones
BLOCK = 1 << 20  # bytes of a Jacobian, of all outputs, that are made of factors at a time
LARGEST_BLOCK = 32 << 20


def folded(buffers: Array) -> Array:
    """The features (..., D) of buffers (..., 2 D)."""
    d = buffers.shape[-1] // 2
    return buffers[..., :d] + buffers[..., d:]


class Accumulator:
    """Buffers that Jacobians are added to, of one group of examples.

    Attributes:
      count: how many buffers there are at most: for each example and output one.
    """

    def __init__(self, buffers: Array, drawn: Drawn, *, count: int, at_once: bool) -> None:
        """Takes buffers (n, R, 2 D); rows are moved `at_once`, as GPUs do fastest, or one after the other."""
        self.count, self.at_once = count, at_once
        self._buffers, self._drawn = buffers, drawn
        self._waiting: list[tuple[int, Array]] = []  # numbers of first rows, and entries from there on

    @property
    def examples(self) -> int:
        """How many examples' buffers these are."""
        return self._buffers.shape[0]

    def add_entries(self, first: int, jacobian: Array) -> None:
        """Adds a Jacobian (n, R, ...), of entries from the begin of row number `first` on."""
        d = self._drawn.dimensions
        entries = jacobian.reshape(*self._buffers.shape[:2], -1)
        full = entries.shape[-1] // d
        if full > FEW_ROWS:
            self._buffers = _add_rows(self._buffers, first, entries, self._drawn, at_once=self.at_once)
            first, entries = first + full, entries[..., full * d :]
        if entries.shape[-1]:
            self._waiting.append((first, entries))

    def add_factors(self, first: int, a: Array, d: Array, *, block: int, bias: int | None) -> None:
        """Adds the Jacobian of a matrix (I, J), whose entries are made a block at a time.

        Args:
          first: number of the matrix's first row of D entries.
          a: factors (n, T, I), or (n, T, I + 1) with a bias, of ones.
          d: factors (n, T, R, J).
          block: rows of the matrix that are made at a time, which together are whole rows of D entries.
          bias: number of the bias's first row of D entries; None without.
        """
        blocks = (a.shape[2] - (bias is not None)) // block
        if blocks:
            how = {"block": block, "blocks": blocks, "at_once": self.at_once}
            self._buffers = _add_blocks(self._buffers, first, a, d, self._drawn, **how)
        rest = _written_out(a[:, :, blocks * block :], d)
        if bias is not None:
            self.add_entries(bias, rest[:, :, -1])
            rest = rest[:, :, :-1]
        self.add_entries(first + blocks * block * d.shape[3] // self._drawn.dimensions, rest)

    def add_embedded(self, first: int, index: Array, derivative: Array) -> None:
        """Adds the Jacobian of an embedding's table, which is 0 but for few rows, and never written out.

        Args:
          first: number of the table's first row of D entries.
          index: (n, T), below 0 for none.
          derivative: (n, R, T, J), or with further axes of size 1.
        """
        self._buffers = _add_embedded(self._buffers, first, index, derivative, self._drawn)

    def total(self) -> Array:
        """The buffers with all that was added."""
        if self._waiting:
            self._add_all_waiting()
        return self._buffers

    def _add_all_waiting(self) -> None:
        """Adds them from one array, of which each loop slices rows of a width and takes their own entries."""
        d, dtype = self._drawn.dimensions, self._buffers.dtype
        by_width: dict[int, list[tuple[int, int, int]]] = {}
        start = 0
        for number, entries in self._waiting:
            count = entries.shape[-1]
            for k in range(0, count, d):
                size = min(d, count - k)
                width = min(1 << (size - 1).bit_length(), d)
                by_width.setdefault(width, []).append((number + k // d, start + k, size))
            start += count
        widest = max(by_width)
        end = jnp.zeros((*self._buffers.shape[:2], widest), dtype)  # so that wider slices than entries are there
        values = jnp.concatenate([*(entries.astype(dtype) for _, entries in self._waiting), end], -1)
        rows: list[tuple[int, int, int]] = []
        for width in sorted(by_width):
            rows += by_width[width]
            if len(rows) >= FEWEST_WAITING or width == widest:
                known = np.array(rows, np.uint32)
                self._buffers = _add_waiting(self._buffers, known, values, self._drawn, width=width)
                rows = []
        self._waiting = []


def _added(buffers: Array, shift: Array, signed: Array) -> Array:
    """Buffers with entries (n, R, D or fewer) of one row added, which have their signs."""
    at = (np.uint32(0), np.uint32(0), shift)
    return lax.dynamic_update_slice(buffers, lax.dynamic_slice(buffers, at, signed.shape) + signed, at)


@functools.partial(jax.jit, static_argnames="at_once")
def _add_rows(buffers: Array, first: Array, entries: Array, drawn: Drawn, *, at_once: bool) -> Array:
    """Buffers with the whole rows of D entries that there are in (n, R, entries) added."""
    d = drawn.dimensions
    rows = entries.shape[-1] // d
    if at_once:
        return buffers.at[..., :d].add(_rolled_sum(entries[..., : rows * d], first, drawn).astype(buffers.dtype))

    def part(k: Array) -> Array:
        return lax.dynamic_slice_in_dim(entries, k * np.uint32(d), d, 2)

    return _add_loop(buffers, rows, lambda k: jnp.asarray(first, jnp.uint32) + k, part, drawn)


@functools.partial(jax.jit, static_argnames="width")
def _add_waiting(buffers: Array, rows: Array, values: Array, drawn: Drawn, *, width: int) -> Array:
    """Buffers with rows added, each (number, begin in `values` (n, R, ...), count of entries, up to `width`)."""
    numbers, starts, sizes = rows.T

    def part(k: Array) -> Array:
        entries = lax.dynamic_slice_in_dim(values, starts[k], width, 2)
        return jnp.where(lax.iota(jnp.uint32, width) < sizes[k], entries, 0)

    return _add_loop(buffers, len(numbers), lambda k: numbers[k], part, drawn)


def _add_loop(
    buffers: Array, count: int, number: Callable[[Array], Array], part: Callable[[Array], Array], drawn: Drawn
) -> Array:
    """Buffers with so many rows added, the k-th of this number and of these entries (n, R, D or fewer).

    The loop counts without a sign: JAX asks of each other index whether it is negative, in an operation of its own.
    """
    of_row = drawn.looped(number, count)

    def add(k: Array, buffers: Array) -> Array:
        entries, (signs, shift) = part(k).astype(buffers.dtype), of_row(k)
        return _added(buffers, shift, entries * signs[:, : entries.shape[2]].astype(buffers.dtype))

    return lax.fori_loop(np.uint32(0), np.uint32(count), add, buffers)


def _rolled_sum(jacobian: Array, first: int, drawn: Drawn) -> Array:
    """(n, R, D) of the full rows of a Jacobian (n, R, rows D), with signs and shifts."""
    d = drawn.dimensions
    jacobian = jacobian.reshape(*jacobian.shape[:2], -1, d)
    jacobian = jacobian.astype(jnp.promote_types(jacobian.dtype, jnp.float32))
    rows = first + jnp.arange(jacobian.shape[2])
    signed = jnp.where(jax.vmap(drawn.negative, out_axes=1)(rows), -jacobian, jacobian)
    places = (jnp.arange(d) - drawn.shifts[rows][:, None].astype(jnp.int32)) % d
    return jnp.sum(jnp.take_along_axis(signed, places[None, None], 3), 2)


def block_of(columns: int, dimensions: int, bytes_of_entry: int, bytes_of_block: int) -> int:
    """How many rows of a matrix's Jacobian, whole rows of D entries together, are made at a time; 0 for none.

    Args:
      columns: of the matrix.
      dimensions: D.
      bytes_of_entry: of an entry for all examples and outputs.
      bytes_of_block: of a block for all of these, if that is a row of D entries at least.
    """
    unit = dimensions // math.gcd(dimensions, columns)
    of_unit = bytes_of_entry * unit * columns
    return 0 if of_unit > LARGEST_BLOCK else unit * max(1, bytes_of_block // of_unit)


@functools.partial(jax.jit, static_argnames=("block", "blocks", "at_once"))
def _add_blocks(
    buffers: Array, first: Array, a: Array, d: Array, drawn: Drawn, *, block: int, blocks: int, at_once: bool
) -> Array:
    """Buffers with the first blocks of a matrix's Jacobian added; see `Accumulator.add_factors`."""
    rows = block * d.shape[3] // drawn.dimensions

    def add(k: Array, buffers: Array) -> Array:
        part = _written_out(lax.dynamic_slice_in_dim(a, k * block, block, 2), d)
        entries = part.reshape(*part.shape[:2], -1)
        return _add_rows(buffers, first + k * rows, entries, drawn, at_once=at_once)

    return lax.fori_loop(0, blocks, add, buffers)


@jax.jit
def _written_out(a: Array, d: Array) -> Array:
    """The Jacobian (n, R, I, J) of factors (n, T, I) and (n, T, R, J)."""
    n, t, r, j = d.shape
    g = jnp.einsum("nti,ntq->niq", a, d.reshape(n, t, r * j)).reshape(n, -1, r, j)
    return jnp.swapaxes(g, 1, 2)


@jax.jit
def _add_embedded(buffers: Array, first: Array, index: Array, derivative: Array, drawn: Drawn) -> Array:
    """See `Accumulator.add_embedded`."""
    n, r, _ = buffers.shape
    derivative = derivative.reshape(n, r, index.shape[1], -1)
    j, dimensions = derivative.shape[-1], np.uint32(drawn.dimensions)
    entry = jnp.maximum(index, 0)[..., None].astype(jnp.uint32) * np.uint32(j) + lax.iota(jnp.uint32, j)
    row, place = (entry // dimensions).astype(jnp.int32) + first, (entry % dimensions).astype(jnp.int32)
    signed = jnp.where(jnp.moveaxis(drawn.negative_at(row, place), -1, 1), -derivative, derivative)
    signed = jnp.where((index >= 0)[:, None, :, None], signed, 0).astype(buffers.dtype)
    shifted = place + drawn.shifts[row].astype(jnp.int32)

    def scatter(buffer: Array, at: Array, values: Array) -> Array:
        return buffer.at[:, at.reshape(-1)].add(values.reshape(r, -1))

    return jax.vmap(scatter)(buffers, shifted, signed)
