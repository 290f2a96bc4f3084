"""What a projection draws for the rows of all variables, as JAX computes it from the seed in each program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.count_sketch import BITS, PARITY, ROTATIONS, TURNS, Sketch

Array = Any

FEW = 1 << 24  # entries of all rows, whose signs are made once, in as many bytes


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["words", "shifts", "outputs", "made"], meta_fields=["dimensions"]
)
@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is drawn for each row of D entries, one variable's rows after the other's.

    Attributes:
      dimensions: D.
      words: the signs of a row's entries, uint32 (rows, words).
      shifts: uint32 (rows,), as places that JAX need not ask whether they are negative.
      outputs: the sign of a row for each of R outputs, 0 or 1, uint32 (rows, R).
      made: of all rows, if these are few (`FEW`), what `_make` gives loops; else None.
    """

    dimensions: int
    words: Array
    shifts: Array
    outputs: Array
    made: tuple[Array, Array, Array] | None = None

    def negative(self, row: Array) -> Array:
        """Which entries (R, D) of a row have a negative sign."""
        words = self.words[row]
        bits = ((words[:, None] >> lax.iota(jnp.uint32, BITS)) & np.uint32(1)).reshape(-1)[: self.dimensions]
        return (bits ^ self.outputs[row][:, None]) == 1

    def looped(self, number: Callable[[Array], Array], count: int) -> Callable[[Array], tuple[Array, Array]]:
        """For a loop over `count` rows, the signs (R, D), 1 or -1, and the shift of the k-th, which is row number(k).

        Signs are made before, since within the loop XLA would make them again for each example and output.
        """
        made = self.made or self._make(number(lax.iota(jnp.uint32, count)))

        def of_row(k: Array) -> tuple[Array, Array]:
            entries, outputs, shifts = (a[number(k) if self.made else k] for a in made)
            return entries * outputs[:, None], shifts

        return of_row

    def _make(self, rows: Any) -> tuple[Array, Array, Array]:
        """1 or -1 of the entries (rows, D) of some rows, and of these rows for each output (rows, R); their shifts."""
        bits = (self.words[rows][..., None] >> lax.iota(jnp.uint32, BITS)) & np.uint32(1)
        bits = bits.reshape(bits.shape[0], -1)[:, : self.dimensions]
        of_entries, of_outputs = (1 - 2 * b.astype(jnp.int8) for b in (bits, self.outputs[rows]))
        return of_entries, of_outputs, self.shifts[rows]

    def negative_at(self, row: Array, place: Array) -> Array:
        """Which of the entries (...) at these rows and places have a negative sign: (..., R)."""
        bits = self.words[row, place // BITS] >> (place % BITS).astype(jnp.uint32)
        return ((bits[..., None] ^ self.outputs[row]) & np.uint32(1)) == 1


def draw(
    sketch: Sketch, variables: Sequence[tuple[str, Sequence[int]]], traced: int, outputs: Array, group: Array
) -> Drawn:
    """Draws for variables, each given by path and shape.

    Args:
      sketch: the projection.
      variables: all of them.
      traced: how many outputs are traced.
      outputs: the numbers (R,) of those at hand among these.
      group: which D of them they are in.
    """
    counts = [sketch.rows(shape) for _, shape in variables]
    first, total = np.cumsum([0, *counts])[:-1], sum(counts)
    keys = [[*signs, *shifts, *of_outputs] for signs, shifts, of_outputs in (sketch.keys(*v) for v in variables)]
    known = np.concatenate([np.array(keys, np.uint32), first.astype(np.uint32)[:, None]], 1)
    rows = lax.iota(jnp.uint32, total)
    variable = jnp.sum((first[1:].astype(np.uint32)[:, None] <= rows).astype(jnp.int32), 0)
    of_row = jnp.asarray(known)[variable]
    row = (rows - of_row[:, 6])[:, None]
    # For each row in one go, because what compiles is the generator: blocks of signs, its shift, signs of outputs.
    blocks, pairs = sketch.words // 2, -(-traced // (2 * BITS))
    widths = (blocks, 1, pairs)

    def columns(*parts: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(p, (total, w)) for p, w in zip(parts, widths, strict=True)], 1)

    block = row * np.uint32(blocks) + lax.iota(jnp.uint32, blocks)
    pair = [columns(*(of_row[:, k : k + 1] for k in (side, side + 2, side + 4))) for side in (0, 1)]
    low, high = _threefry(pair, columns(block, row, row), columns(group, group, lax.iota(jnp.uint32, pairs)))
    words = jnp.stack([low, high], -1).reshape(total, -1)
    shifts = low[:, blocks] % np.uint32(sketch.dimensions)
    of_outputs = words[:, 2 * blocks + 2 :][:, outputs // BITS] >> (outputs % BITS).astype(jnp.uint32)
    drawn = Drawn(sketch.dimensions, words[:, : 2 * blocks], shifts, of_outputs & np.uint32(1))
    few = total * sketch.dimensions <= FEW
    return dataclasses.replace(drawn, made=drawn._make(slice(None))) if few else drawn


def _threefry(key: Sequence[Array], x: Array, y: Array) -> tuple[Array, Array]:
    """`count_sketch.threefry` in a loop, which compiles in a fraction of the time."""
    keys = jnp.stack([*key, key[0] ^ key[1] ^ PARITY])
    rotations = jnp.asarray(ROTATIONS, jnp.uint32)

    def turn(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, y = state
        for rotation in rotations[k % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (np.uint32(32) - rotation))) ^ x
        return x + keys[(k + 1) % 3], y + keys[(k + 2) % 3] + (k + 1).astype(jnp.uint32)

    low, high = lax.fori_loop(0, TURNS, turn, (x + keys[0], y + keys[1]))
    return low, high
