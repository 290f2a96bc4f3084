"""Requests of any size from programs of few sizes: plain TF around XLA programs for blocks of examples.

A batch is a list of tensors (n, ...), n >= 0, one for each input of the model. Programs take a block of exactly so many
examples; it is filled up with zeros, whose rows are cut from the result, and programs treat examples independently, so
nothing else changes. The features of several blocks make a tile, because products of large matrices cost less.

A request for n1 × n2 examples computes the features of each example once, as long as those of one side fit the memory
budget; the others are made block by block, contracted with these, and dropped. So memory is bounded whatever n1 and n2
are. If neither side fits, what streams is made once for each part of the other side that does. If these are many, the
kernel may be a sum over passes, each of some outputs of the model, whose features are smaller.

`variables` is whatever the programs take besides examples: a nest of tensors. Each function is traced once and shared
by all graphs that call it, because a SavedModel is loaded node by node.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from exporter.compat.tensorflow_names import set_attribute
from exporter.graph.traced import traced_once

Batch = Sequence[tf.Tensor]
Nest = Any  # of tensors (n, ...)

_LOOPS = ("While", "StatelessWhile")
FULL = 0.75  # a block at least so full is padded, if not earlier; else smaller ones are used


class Rowwise:
    """Values of each example alone, for any number of examples."""

    def __init__(
        self, sizes: Sequence[int], run: Callable[[Any, Batch], Nest], results: Any, *, overhead: float = 0.0
    ) -> None:
        """Takes the XLA programs.

        Args:
          sizes: numbers of examples to call `run` with, smallest first.
          run: run(variables, x) for a batch of such a number; row i of each result depends on example i alone.
          results: its nest of results as `tf.TensorSpec`s, with None for the number of examples.
          overhead: how many examples' work takes as long as a program takes without any.
        """
        self.sizes, self.results, self._run = tuple(sizes), results, run
        # So many examples make a block cheaper than smaller ones, which take each their overhead.
        self._enough = [0] + [
            int(min(FULL, (1 + overhead / size) / (1 + overhead / smaller)) * size)
            for smaller, size in itertools.pairwise(sizes)
        ]
        levels = range(len(sizes))
        self._any_number = [_traced_once(functools.partial(self._assemble, level)) for level in levels]
        self._one_block = [_traced_once(functools.partial(self._fill, level)) for level in levels]

    def __call__(self, variables: Any, x: Batch) -> Nest:
        """The values (n, ...) of n examples, by as many large blocks as they fill and smaller ones for the rest."""
        return self._any_number[-1](variables, list(x))

    def block(self, level: int, variables: Any, x: Batch) -> Nest:
        """The values of at most sizes[level] examples, with those of padding, or zeros, to sizes[level] rows."""
        return self._one_block[level](variables, list(x))

    def _assemble(self, largest: int, variables: Any, x: Batch) -> Nest:
        n = tf.shape(x[0])[0]
        done, parts = tf.constant(0), []
        for size, enough in reversed(list(zip(self.sizes, self._enough, strict=True))[: largest + 1]):
            left = n - done
            padded = left % size > enough
            count = left // size + tf.cast(padded, tf.int32)
            parts.append(self._blocks(size, variables, [a[done:] for a in x], count))
            done = tf.minimum(n, done + count * size)
        return tf.nest.map_structure(lambda *values: tf.concat(values, 0)[:n], *parts)

    def _blocks(self, size: int, variables: Any, x: Batch, count: tf.Tensor) -> Nest:
        """The values of the first `count` blocks of x: (count * size, ...)."""
        values = _Stored(
            self.results, size, count, lambda k: self._run(variables, _padded([a[k * size :][:size] for a in x], size))
        )
        return values.concatenated()

    def _fill(self, level: int, variables: Any, x: Batch) -> Nest:
        size = self.sizes[level]

        def by_smaller() -> Nest:
            return tf.nest.map_structure(lambda a: _pad(a, size), self._any_number[level - 1](variables, x))

        if level == 0:
            return self._run(variables, _padded(x, size))
        n = tf.shape(x[0])[0]
        return tf.cond(n > self._enough[level], lambda: self._run(variables, _padded(x, size)), by_smaller)


class Kernel:
    """The kernel of batches of any size.

    Attributes:
      rows: features of any number of examples, to be kept.
      pairwise, symmetric: the kernel of two batches, and of one with itself.
      against: that of a batch with examples whose features were kept; of a kernel in one pass.
    """

    def __init__(
        self,
        features: Rowwise,
        contract: Callable[[Any, Nest, Nest], tf.Tensor],
        *,
        sizes: Sequence[int],
        resident: int,
        result: tf.TensorSpec,
        swap: Sequence[int],
        passes: int = 1,
        larger: Kernel | None = None,
        most: int = 0,
    ) -> None:
        """Takes the XLA programs.

        Args:
          features: of examples; with several passes, their `variables` are (variables, number of the pass).
          contract: contract(variables, features1, features2) of two sides of the same one of these `sizes`.
          sizes: examples of a side of a contraction, smallest first: sizes of features, and for tiles a multiple.
          resident: tiles whose features may be in memory at once, besides one more.
          result: shape and dtype of the kernel, with None for numbers of examples.
          swap: the permutation of its axes that exchanges the two sides.
          passes: the kernel is a sum of so many.
          larger: the same kernel with more passes, for requests of which neither side nearly fits. It also gets those
            without examples on either side, so that warmup requests reach its programs without being large.
          most: examples of the smaller side of a request that is not for `larger`, if there is one.
        """
        self.rows, self._contract, self._result, self._swap = features, contract, result, tuple(swap)
        self._passes, self._larger, self._most = passes, larger, most
        self._tile, self._resident = sizes[-1], resident
        self._specs = features.results
        self._sides = [(size, _side(features, size)) for size in sizes]
        self._tiled_once, self._symmetric_once = _traced_once(self._tiled), _traced_once(self._tiled_symmetric)
        self.pairwise = _traced_once(self._pairwise)
        self.symmetric = _traced_once(self._symmetric)
        self.against = _traced_once(self._against)

    def _pairwise(self, variables: Any, x1: Batch, x2: Batch) -> tf.Tensor:
        """The (n1, n2, ...) kernel of every example of x1 with every one of x2."""
        n1, n2 = tf.shape(x1[0])[0], tf.shape(x2[0])[0]

        def at_once(variables: Any, level: int) -> tf.Tensor:
            f1 = self._features(level, variables, x1)
            largest = level == len(self._sides) - 1  # then one side after the other: both at work take memory
            with tf.control_dependencies(tf.nest.flatten(f1) if largest else []):
                f2 = self._features(level, variables, x2)
            return self._contract(variables, f1, f2)[:n1, :n2]

        def by_tiles(variables: Any) -> tf.Tensor:
            # The side whose features are kept should be the one that fits.
            exchanged = (n1 > self._resident * self._tile) & (n2 < n1)
            sides = tf.cond(exchanged, lambda: (list(x2), list(x1)), lambda: (list(x1), list(x2)))
            result = self._tiled_once(variables, *sides)
            return tf.cond(exchanged, lambda: tf.transpose(result, self._swap), lambda: result)

        return self._by_size(
            variables, n1, n2, at_once, by_tiles, lambda larger: larger.pairwise(variables, list(x1), list(x2))
        )

    def _symmetric(self, variables: Any, x: Batch) -> tf.Tensor:
        """The same for x with itself: features once, and tiles below the diagonal from those above."""
        n = tf.shape(x[0])[0]

        def at_once(variables: Any, level: int) -> tf.Tensor:
            features = self._features(level, variables, x)
            return self._contract(variables, features, features)[:n, :n]

        def by_tiles(variables: Any) -> tf.Tensor:
            return self._symmetric_once(variables, x)

        return self._by_size(variables, n, n, at_once, by_tiles, lambda larger: larger.symmetric(variables, list(x)))

    def _against(self, variables: Any, x: Batch, kept: Nest) -> tf.Tensor:
        """The (n1, n2, ...) kernel of every example of x with every one whose features are kept.

        By the square contractions that there are: blocks of the largest size, or tiles if x is larger.
        """
        n1, n2 = tf.shape(x[0])[0], tf.shape(tf.nest.flatten(kept)[0])[0]
        block = self.rows.sizes[-1]

        def by(level: int) -> tf.Tensor:
            size = self._sides[level][0]
            rows, columns = ((n + size - 1) // size for n in (n1, n2))

            def row(i: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
                left = self._features(level, variables, [a[i * size :][:size] for a in x])

                def column(j: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
                    right = tf.nest.map_structure(lambda a: _pad(a[j * size :][:size], size), kept)
                    return tiles.write(i * columns + j, self._contract(variables, left, right))

                return _loop(columns, column, tiles)

            shape = [size, size, *self._result.shape[2:]]
            tiles = tf.TensorArray(self._result.dtype, rows * columns, element_shape=shape)
            return _join(_loop(rows, row, tiles).stack(), rows, columns)[:n1, :n2]

        level = next(k for k, (size, _) in enumerate(self._sides) if size == block)
        result = by(-1) if block == self._tile else tf.cond(n1 > block, lambda: by(-1), lambda: by(level))
        return tf.ensure_shape(result, self._result.shape)

    def _by_size(
        self,
        variables: Any,
        n1: tf.Tensor,
        n2: tf.Tensor,
        at_once: Callable[[Any, int], tf.Tensor],
        by_tiles: Callable[[Any], tf.Tensor],
        by_larger: Callable[[Kernel], tf.Tensor],
    ) -> tf.Tensor:
        """at_once with the number of the smallest side that holds both batches, by_tiles if none does; or by_larger."""
        most = tf.maximum(n1, n2)

        def choose(variables: Any, level: int) -> tf.Tensor:
            if level == len(self._sides):
                return by_tiles(variables)
            fits = most <= self._sides[level][0]
            return tf.cond(fits, lambda: at_once(variables, level), lambda: choose(variables, level + 1))

        def own() -> tf.Tensor:
            zero = tf.zeros([n1, n2, *self._result.shape[2:]], self._result.dtype)
            return sum_over_passes(self._passes, lambda variables: choose(variables, 0), variables, zero)

        larger = self._larger
        if larger is None:
            result = own()
        else:
            too_large = tf.minimum(n1, n2) > self._most
            result = tf.cond(too_large | tf.equal(most, 0), lambda: by_larger(larger), own)
        return tf.ensure_shape(result, self._result.shape)

    def _tiled(self, variables: Any, x1: Batch, x2: Batch) -> tf.Tensor:
        """The kernel by tiles: for each part of x1 whose features fit, all tiles of x2."""
        n1, n2 = tf.shape(x1[0])[0], tf.shape(x2[0])[0]
        rows, columns = self._count(n1), self._count(n2)

        def part(start: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
            count = tf.minimum(self._resident, rows - start)
            kept = self._keep(variables, x1, start, count)

            def column(j: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
                right = self._tile_features(variables, x2, j)

                def row(i: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
                    return tiles.write((start + i) * columns + j, self._contract(variables, kept[i], right))

                return _loop(count, row, tiles)

            return _loop(columns, column, tiles)

        tiles = _loop(rows, part, self._tiles(rows * columns), step=self._resident)
        return _join(tiles.stack(), rows, columns)[:n1, :n2]

    def _tiled_symmetric(self, variables: Any, x: Batch) -> tf.Tensor:
        n = tf.shape(x[0])[0]
        rows = self._count(n)

        def part(start: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
            count = tf.minimum(self._resident, rows - start)
            kept = self._keep(variables, x, start, count)

            def column(k: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
                right = tf.cond(k < count, lambda: kept[k], lambda: self._tile_features(variables, x, start + k))

                def row(i: tf.Tensor, tiles: tf.TensorArray) -> tf.TensorArray:
                    tile = self._contract(variables, kept[i], right)
                    return tiles.write((start + i) * rows + start + k, tile)

                return _loop(tf.minimum(count, k + 1), row, tiles)

            return _loop(rows - start, column, tiles)

        written = _loop(rows, part, self._tiles(rows * rows), step=self._resident).stack()  # zeros below the diagonal
        i, j = tf.meshgrid(tf.range(rows), tf.range(rows), indexing="ij")
        mirrored = tf.transpose(tf.gather(written, tf.reshape(j * rows + i, [-1])), [0, *(1 + a for a in self._swap)])
        above = tf.reshape(i <= j, [-1, *[1] * (written.shape.rank - 1)])
        return _join(tf.where(above, written, mirrored), rows, rows)[:n, :n]

    def _features(self, level: int, variables: Any, x: Batch) -> Nest:
        """Those of a batch as a side of the contraction of this level, filled up."""
        return self._sides[level][1](variables, list(x))

    def _count(self, n: tf.Tensor) -> tf.Tensor:
        return (n + self._tile - 1) // self._tile

    def _tiles(self, count: tf.Tensor) -> tf.TensorArray:
        shape = [self._tile, self._tile, *self._result.shape[2:]]
        return tf.TensorArray(self._result.dtype, count, element_shape=shape)

    def _tile_features(self, variables: Any, x: Batch, k: tf.Tensor) -> Nest:
        start = k * self._tile
        return self._features(-1, variables, [a[start : start + self._tile] for a in x])

    def _keep(self, variables: Any, x: Batch, start: tf.Tensor, count: tf.Tensor) -> _Stored:
        """The features of `count` tiles of x from number `start` on."""
        return _Stored(self._specs, self._tile, count, lambda i: self._tile_features(variables, x, start + i))


def _side(features: Rowwise, size: int) -> Callable[[Any, Batch], Nest]:
    """features(variables, x) of at most so many examples, with those of padding, or zeros, to `size` rows."""
    if size in features.sizes:
        return functools.partial(features.block, features.sizes.index(size))
    return _traced_once(functools.partial(_of_tile, features, size))


def _of_tile(features: Rowwise, rows: int, variables: Any, x: Batch) -> Nest:
    """The same, by blocks of the largest size."""
    size, n = features.sizes[-1], tf.shape(x[0])[0]
    zeros = tf.nest.map_structure(lambda spec: tf.zeros([size, *spec.shape[1:]], spec.dtype), features.results)
    parts: list[Nest] = []
    for start in range(0, rows, size):
        block = functools.partial(features.block, -1, variables, [a[start : start + size] for a in x])
        with tf.control_dependencies(tf.nest.flatten(parts[-1:])):  # as many at work as the memory budget knows of
            parts.append(tf.cond(n > start, block, lambda: zeros) if start else block())
    return tf.nest.map_structure(lambda *values: tf.concat(values, 0), *parts)


def sum_over_passes(passes: int, fn: Callable[[Any], tf.Tensor], variables: Any, zero: tf.Tensor) -> tf.Tensor:
    """fn(variables), or if there are several passes zero and fn((variables, number)) for each number of a pass.

    Where there are no entries to add up, one pass does, which reaches all programs.
    """
    if passes == 1:
        return fn(variables)
    count = tf.where(tf.equal(tf.size(zero), 0), 1, passes)
    return _loop(count, lambda k, total: total + fn((variables, k)), zero)


def whole(run: Callable[..., tf.Tensor], result: tf.TensorSpec, *sides: Batch) -> tf.Tensor:
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


class _Stored:
    """values(0), ..., values(count - 1), each a nest of tensors (size, ...), computed one after the other."""

    def __init__(self, results: Any, size: int, count: tf.Tensor, values: Callable[[tf.Tensor], Nest]) -> None:
        self._results, self._rows = results, count * size
        arrays = [
            tf.TensorArray(spec.dtype, count, element_shape=[size, *spec.shape[1:]], clear_after_read=False)
            for spec in tf.nest.flatten(results)
        ]

        def write(k: tf.Tensor, arrays: list[tf.TensorArray]) -> list[tf.TensorArray]:
            return [a.write(k, value) for a, value in zip(arrays, tf.nest.flatten(values(k)), strict=True)]

        self._arrays = _loop(count, write, arrays)

    def __getitem__(self, k: tf.Tensor) -> Nest:
        return tf.nest.pack_sequence_as(self._results, [array.read(k) for array in self._arrays])

    def concatenated(self) -> Nest:
        """All of them along the axis of examples."""
        stacked = [
            tf.reshape(array.stack(), [self._rows, *spec.shape[1:]])
            for array, spec in zip(self._arrays, tf.nest.flatten(self._results), strict=True)
        ]
        return tf.nest.pack_sequence_as(self._results, stacked)


def _traced_once(fn: Callable[..., Any]) -> Any:
    """`fn` as a function that stays one in the graphs that call it, instead of being copied into each."""
    return traced_once(fn, experimental_attributes={"_noinline": True})


def _loop(count: tf.Tensor, body: Callable[[tf.Tensor, Any], Any], state: Any, *, step: int = 1) -> Any:
    """state after body(0, state), body(step, state), ... below `count`, one after the other."""
    _, state = tf.while_loop(
        lambda k, _: k < count,
        lambda k, state: (k + step, body(k, state)),
        (tf.constant(0), state),
        parallel_iterations=1,
    )
    # As an op that calls its body. Lowered to Switch and Merge, which is the default, nested loops are broken by a
    # session's function optimizer ("has inputs from different frames", TF 2.21), and so in TF Serving.
    loop = next(op for op in reversed(tf.compat.v1.get_default_graph().get_operations()) if op.type in _LOOPS)
    set_attribute(loop, "_lower_using_switch_merge", tf.compat.v1.AttrValue(b=False))
    return state


def _padded(x: Batch, rows: int) -> list[tf.Tensor]:
    return [_pad(a, rows) for a in x]


def _pad(a: tf.Tensor, rows: int) -> tf.Tensor:
    """`a` with zeros after its last row, to have so many."""
    padded = tf.pad(a, [[0, rows - tf.shape(a)[0]], *[[0, 0]] * (a.shape.rank - 1)])
    return tf.ensure_shape(padded, [rows, *a.shape[1:]])


def _join(tiles: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """(rows * columns, block, block, ...) to (rows * block, columns * block, ...)."""
    block1, block2, *rest = tiles.shape[1:]
    grid = tf.reshape(tiles, [rows, columns, block1, block2, *rest])
    grid = tf.transpose(grid, [0, 2, 1, 3, *range(4, 4 + len(rest))])
    return tf.reshape(grid, [rows * block1, columns * block2, *rest])
