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

# Bytes of a process with TensorFlow and an export of which every program is compiled: 1,000 to 1,050 MiB (TensorFlow
# 2.21, an MLP of 1.8 and a CNN of 0.2 million parameters), and some for Dask and Zarr.
PROCESS = 1100 << 20
# How many times the manifest's bytes what programs work with takes, features that are kept, and a request's result,
# which is there as tiles of the graph and joined. Of the MLP and the CNN it is 1,500 MiB for 2,500 and 1,900 for 5,000,
# 1,990 for 500 and 2,150 for 1,000 examples a side; by these numbers 1,540, 1,980, 1,960 and 2,270.
_WORK, _KEPT, _RESULT = 2.3, 1.3, 2
_ROWS = 5  # of a result's rows, which the store copies in one piece
_PROJECTION = 0.7  # of the manifest's bytes of a request: exports plan it with half of them, of which it takes 1.4
_CHUNK = 32 << 20  # bytes of a chunk at most: what a reader of a few numbers reads, and a writer copies twice
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
      chunk: examples of a chunk of the store, likewise; equal if the kernel is symmetric, as `parts` are.
      symmetric: whether both are the same examples.
      parts: chunks of a tile, likewise.
    """

    examples: tuple[int, int]
    chunk: tuple[int, int]
    symmetric: bool
    parts: tuple[int, int] = (1, 1)

    @property
    def sides(self) -> tuple[int, int]:
        """Of a tile: examples down and across."""
        return self.chunk[0] * self.parts[0], self.chunk[1] * self.parts[1]

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
        sides = min(n1, side), min(n2, side)
        cuts = math.ceil(math.sqrt(math.prod(sides) * _bytes_of_pair(manifest) / _CHUNK))
        chunk1, chunk2 = (math.ceil(side / cuts) for side in sides)
        return Grid((n1, n2), (chunk1, chunk2), symmetric, (math.ceil(sides[0] / chunk1), math.ceil(sides[1] / chunk2)))

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
    work = int(_PROJECTION * manifest["bytes"]["request_at_most"])
    free = memory - PROCESS - work
    if free < least * bytes_of_row * _ROWS:
        needed = PROCESS + work + least * bytes_of_row * _ROWS
        raise DatasetError(
            f"Expected a --memory of at least {math.ceil(needed / 2**20):,} MiB for TensorFlow, this export and "
            f"{least} examples, received {memory / 2**20:,.0f} MiB."
        )
    shared = max(least, math.ceil(rows / (_SPREAD * workers)))
    return min(rows, shared, int(free / (bytes_of_row * _ROWS)))


def _bytes(manifest: Mapping[str, Any], grid: Grid) -> int:
    """What a worker takes for a tile."""
    recorded, blocks = manifest["bytes"], manifest["blocks"] or {"sizes": [1], "resident": 0, "joined": 1}
    resident = blocks["sizes"][-1] * blocks["joined"] * blocks["resident"]  # examples whose features may be kept
    work = recorded["request_at_most"] - resident * recorded["features_of_an_example"]
    kept = min(*grid.sides, resident) * recorded["features_of_an_example"]
    result = math.prod(grid.sides) * _bytes_of_pair(manifest)
    return PROCESS + int(_WORK * work + _KEPT * kept) + _RESULT * result


def _bytes_of_pair(manifest: Mapping[str, Any]) -> int:
    kernel = manifest["kernel"]
    return itemsize(kernel["dtype"]) * math.prod(kernel["shape"][2:])


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
