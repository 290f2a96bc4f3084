"""How a kernel is divided into tiles, and how large they are."""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from serving.dataset.errors import DatasetError

# Bytes of a process with TensorFlow and an export of which every program is compiled: 1,030 to 1,070 MiB (TensorFlow
# 2.21, an MLP of 1.8 and a CNN of 0.2 million parameters), and some for Dask and Zarr.
PROCESS = 1100 << 20
# How much more than the manifest's bytes a request's features take: 0.8 times the MLP's, 1.5 times the CNN's.
_FEATURES = 1.4
# A request's result is in memory as tiles of the graph, joined, and on its way to the store: 4.4 times its bytes.
_COPIES = 5
_PAIRS_OF_FEATURES = 400.0  # Features of an example cost as much as so many pairs: 560 of the MLP, 230 of the CNN.
_LEAST = 64
_MANY = 64  # tiles for each worker: with more, how they end hardly matters
_SPREAD = 4  # how many times more parts a side than memory asks for are considered, for workers to end together


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows and columns of a kernel; the numbers are those of the tile in the grid."""

    row: int
    column: int
    rows: slice
    columns: slice

    @property
    def pairs(self) -> int:
        """Of examples."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A kernel in tiles; of a symmetric one those with row <= column.

    Attributes:
      examples: (n1, n2) down and across.
      sides: of a tile, likewise; equal if the kernel is symmetric.
      symmetric: whether both are the same examples.
    """

    examples: tuple[int, int]
    sides: tuple[int, int]
    symmetric: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles down and across."""
        (n1, n2), (side1, side2) = self.examples, self.sides
        return math.ceil(n1 / side1), math.ceil(n2 / side2)

    @property
    def tiles(self) -> int:
        """That are computed."""
        rows, columns = self.shape
        return rows * (rows + 1) // 2 if self.symmetric else rows * columns

    def __iter__(self) -> Iterator[Tile]:
        """All of them; those on the diagonal of a symmetric kernel, which cost half, last."""
        rows, columns = self.shape
        for row in range(rows):
            for column in range(row + 1 if self.symmetric else 0, columns):
                yield self.tile(row, column)
        if self.symmetric:
            for row in range(rows):
                yield self.tile(row, row)

    def tile(self, row: int, column: int) -> Tile:
        """By its numbers."""
        parts = zip((row, column), self.sides, self.examples, strict=True)
        rows, columns = (slice(k * side, min(n, (k + 1) * side)) for k, side, n in parts)
        return Tile(row, column, rows, columns)


def choose_grid(manifest: Mapping[str, Any], n1: int, n2: int, *, symmetric: bool, memory: int, workers: int) -> Grid:
    """Tiles as large as a worker's memory allows, since each makes the features of its rows and columns anew; and in
    such a number that all workers end at about the same time.

    Args:
      manifest: of the export.
      n1, n2: numbers of examples.
      symmetric: whether they are the same.
      memory: bytes of a worker.
      workers: that there are now.

    Raises:
      DatasetError: the memory does not hold even small tiles.
    """

    def grid(side: int) -> Grid:
        return Grid((n1, n2), (min(n1, side), min(n2, side)), symmetric)

    most = max(n1, n2)
    least = min(_LEAST, most)
    if (needed := _bytes(manifest, grid(least))) > memory:
        raise DatasetError(
            f"Expected a --memory of at least {math.ceil(needed / 2**20):,} MiB for TensorFlow, this export and a tile "
            f"of {least} × {least} examples, received {memory / 2**20:,.0f} MiB."
        )
    largest = least + bisect.bisect_right(
        range(least + 1, most + 1), memory, key=lambda side: _bytes(manifest, grid(side))
    )
    parts = math.ceil(most / largest)
    sides = {math.ceil(most / p) for p in range(parts, _SPREAD * max(parts, workers) + 1)}
    grids = [grid(side) for side in sorted(sides, reverse=True) if side >= least]
    few = [grid for grid in grids if grid.tiles <= _MANY * workers] or grids[:1]
    return min(few, key=lambda grid: _makespan(grid, workers))


def rows_at_once(manifest: Mapping[str, Any], rows: int, bytes_of_row: int, memory: int, workers: int) -> int:
    """How many of so many examples a worker takes at a time, with so many bytes of a result's row each.

    As many as memory allows, but that each worker has some parts: they end together, and less is lost when one dies.

    Raises:
      DatasetError: the memory does not hold even a few.
    """
    least = min(_LEAST, rows)
    work = int(_FEATURES * manifest["bytes"]["request_at_most"] / 2)  # exports plan a projection with half of it
    free = memory - PROCESS - work
    if free < least * bytes_of_row * _COPIES:
        needed = PROCESS + work + least * bytes_of_row * _COPIES
        raise DatasetError(
            f"Expected a --memory of at least {math.ceil(needed / 2**20):,} MiB for TensorFlow, this export and "
            f"{least} examples, received {memory / 2**20:,.0f} MiB."
        )
    shared = max(least, math.ceil(rows / (_SPREAD * workers)))
    return min(rows, shared, int(free / (bytes_of_row * _COPIES)))


def _bytes(manifest: Mapping[str, Any], grid: Grid) -> int:
    """What a worker takes for a tile."""
    recorded, kernel = manifest["bytes"], manifest["kernel"]
    result = math.prod(grid.sides) * itemsize(kernel["dtype"]) * math.prod(kernel["shape"][2:])
    blocks = manifest["blocks"] or {"sizes": [1], "joined": 1}
    block = blocks["sizes"][-1] * blocks["joined"]
    features = (min(grid.sides) + 2 * block) * recorded["features_of_an_example"]
    return PROCESS + int(_FEATURES * min(recorded["request_at_most"], features)) + _COPIES * result


def itemsize(dtype: str) -> int:
    """Bytes of a number."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _makespan(grid: Grid, workers: int) -> float:
    """When the last worker ends, in pairs, if each takes the next tile as soon as it is free."""
    ends = [0.0] * workers
    for tile in grid:
        rows, columns = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        if grid.symmetric and tile.row == tile.column:
            cost = _PAIRS_OF_FEATURES * rows + tile.pairs / 2
        else:
            cost = _PAIRS_OF_FEATURES * (rows + columns) + tile.pairs
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)
