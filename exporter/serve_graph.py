"""Requests of any size from programs of one size: TF loops over padded blocks of examples.

Every function takes batches of any n >= 0 examples as lists of tensors, one for each model input, and runs a `Program`
on one block after the other, so that memory is that of one block and of the result. Blocks are filled up with zeros;
the rows of these are cut from the result, and a program that treats examples independently keeps them from the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Program:
    """An XLA program for exactly `block` examples a side.

    Attributes:
      run: takes one list of tensors (block, ...) for each side, a side being a batch with all inputs of the model.
      block: examples a side.
      result: dtype and shape of what `run` returns, with None in the place of each `block`.
    """

    run: Callable[..., tf.Tensor]
    block: int
    result: tf.TensorSpec


def pairwise(program: Program, x1: Sequence[tf.Tensor], x2: Sequence[tf.Tensor]) -> tf.Tensor:
    """The (n1, n2, ...) result of every example of x1 with every one of x2."""
    n1, blocks1 = _split(x1, program.block)
    n2, blocks2 = _split(x2, program.block)
    rows, columns = tf.shape(blocks1[0])[0], tf.shape(blocks2[0])[0]
    tiles = _run(program, rows * columns, lambda k: (_pick(blocks1, k // columns), _pick(blocks2, k % columns)))
    return _join(tiles, rows, columns)[:n1, :n2]


def symmetric(program: Program, x: Sequence[tf.Tensor], swap: Sequence[int]) -> tf.Tensor:
    """The same for x with itself, from the blocks on and above the diagonal; the others are their transposes.

    `swap` is the permutation of the axes of the result that exchanges the roles of the two examples.
    """
    n, blocks = _split(x, program.block)
    rows = tf.shape(blocks[0])[0]
    i, j = tf.meshgrid(tf.range(rows), tf.range(rows), indexing="ij")
    upper = tf.cast(tf.where(i <= j), tf.int32)  # (tiles, 2), by row, then by column
    tiles = _run(program, tf.shape(upper)[0], lambda k: (_pick(blocks, upper[k, 0]), _pick(blocks, upper[k, 1])))
    low, high = tf.minimum(i, j), tf.maximum(i, j)
    index = tf.reshape(low * rows - low * (low - 1) // 2 + high - low, [-1])  # of the tile (low, high) in `upper`
    above = tf.reshape(i <= j, [-1, *[1] * (tiles.shape.rank - 1)])
    below = tf.transpose(tiles, [0, *(1 + axis for axis in swap)])
    return _join(tf.where(above, tf.gather(tiles, index), tf.gather(below, index)), rows, rows)[:n, :n]


def rowwise(program: Program, x: Sequence[tf.Tensor]) -> tf.Tensor:
    """The (n, ...) result of which row i depends on example i alone."""
    n, blocks = _split(x, program.block)
    rows = _run(program, tf.shape(blocks[0])[0], lambda k: (_pick(blocks, k),))
    return tf.reshape(rows, [-1, *program.result.shape[1:]])[:n]


def _split(x: Sequence[tf.Tensor], block: int) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """n, and each of `x` filled up with zeros to whole blocks: (blocks, block, ...)."""
    n = tf.shape(x[0])[0]
    count = (n + block - 1) // block
    padding = [0, count * block - n]
    return n, [
        tf.reshape(tf.pad(a, [padding, *[[0, 0]] * (a.shape.rank - 1)]), [count, block, *a.shape[1:]]) for a in x
    ]


def _pick(blocks: Sequence[tf.Tensor], k: tf.Tensor) -> list[tf.Tensor]:
    return [b[k] for b in blocks]


def _run(program: Program, count: tf.Tensor, sides: Callable[[tf.Tensor], tuple[list[tf.Tensor], ...]]) -> tf.Tensor:
    """The results of `program` on sides(0), ..., sides(count - 1), one after the other, stacked."""
    shape = [program.block if size is None else size for size in program.result.shape]
    results = tf.TensorArray(program.result.dtype, size=count, element_shape=shape)
    _, results = tf.while_loop(
        lambda k, _: k < count,
        lambda k, results: (k + 1, results.write(k, program.run(*sides(k)))),
        (tf.constant(0), results),
        parallel_iterations=1,
    )
    return results.stack()


def _join(tiles: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """(rows * columns, block, block, ...) to (rows * block, columns * block, ...)."""
    block1, block2, *rest = tiles.shape[1:]
    grid = tf.reshape(tiles, [rows, columns, block1, block2, *rest])
    grid = tf.transpose(grid, [0, 2, 1, 3, *range(4, 4 + len(rest))])
    return tf.reshape(grid, [rows * block1, columns * block2, *rest])


def whole(run: Callable[..., tf.Tensor], result: tf.TensorSpec, *sides: Sequence[tf.Tensor]) -> tf.Tensor:
    """run(*sides) on all examples at once, as a model needs whose examples influence each other.

    `result` has None for each side's number of examples. A side without examples gives a result without entries.
    """
    counts = [tf.shape(x[0])[0] for x in sides]
    batch = len([d for d in result.shape if d is None])
    shape = tf.stack([*(counts * batch)[:batch], *result.shape[batch:]])
    output = tf.cond(
        tf.reduce_min(counts) > 0, lambda: run(*sides), lambda: tf.zeros(tf.where(shape > 0, shape, 0), result.dtype)
    )
    return tf.ensure_shape(output, result.shape)
