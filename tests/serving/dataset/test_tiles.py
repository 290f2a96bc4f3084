"""Which tiles a kernel is divided into."""

import numpy as np
import pytest

from serving.dataset import tiles
from serving.dataset.errors import DatasetError
from serving.dataset.tiles import Grid, choose_grid, rows_at_once

MLP = {
    "kernel": {"shape": [None, None], "dtype": "float32"},
    "blocks": {"sizes": [1, 8, 64], "resident": 33, "joined": 4},
    "bytes": {"features_of_an_example": 94056, "request_at_most": 842741760},
}


@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_cover_each_pair_once(symmetric):
    n1, n2 = (10, 10) if symmetric else (10, 7)
    grid = Grid((n1, n2), (2, 2) if symmetric else (4, 3), symmetric, (2, 2) if symmetric else (1, 1))
    seen = np.zeros((n1, n2), int)
    for tile in grid:
        seen[tile.rows, tile.columns] += 1
        if symmetric and tile.row != tile.column:
            seen[tile.columns, tile.rows] += 1
    assert (seen == 1).all()
    assert grid.tiles == len(list(grid))


@pytest.mark.parametrize(("n1", "n2"), [(10_000, 10_000), (1_000_000, 1_000_000), (50_000, 10), (3, 3)])
def test_tiles_fit_the_memory(n1, n2):
    memory = 2 << 30
    grid = choose_grid(MLP, n1, n2, symmetric=n1 == n2, memory=memory, workers=2)
    assert tiles._bytes(MLP, grid) <= memory
    assert 4 * np.prod(grid.chunk) <= tiles._CHUNK
    larger = Grid(grid.examples, tuple(min(n, 2 * s) for n, s in zip(grid.examples, grid.sides, strict=True)), False)
    assert n1 < 1_000_000 or tiles._bytes(MLP, larger) > memory
    assert grid.sides[1] <= n2


def test_workers_end_together():
    """One tile would leave all workers but one without anything to do."""
    for workers in (1, 2, 7):
        grid = choose_grid(MLP, 10_000, 10_000, symmetric=True, memory=8 << 30, workers=workers)
        alone = choose_grid(MLP, 10_000, 10_000, symmetric=True, memory=8 << 30, workers=1)
        assert tiles._makespan(grid, workers) <= tiles._makespan(alone, workers)
        # Features are made again, and ends are uneven.
        assert tiles._makespan(grid, workers) < 1.5 * tiles._makespan(alone, 1) / workers


def test_too_little_memory_is_said():
    with pytest.raises(DatasetError, match=r"Expected a --memory of at least 1,2\d\d MiB .* received 1,000 MiB"):
        choose_grid(MLP, 500, 500, symmetric=True, memory=1000 << 20, workers=2)
    with pytest.raises(DatasetError, match="Expected a --memory of at least"):
        rows_at_once(MLP, 1000, 4 * 4096, 1100 << 20, 2)


def test_rows_fit_the_memory():
    assert rows_at_once(MLP, 10, 4 * 4096, 4 << 30, 2) == 10
    assert rows_at_once(MLP, 1000, 4 * 4096, 4 << 30, 2) == 125  # four parts for each worker
    assert 64 < rows_at_once(MLP, 10**6, 4 * 4096, 4 << 30, 2) < 10**5
