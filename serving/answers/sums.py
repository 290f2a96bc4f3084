"""Sums over the features of many examples, by the workers that made them: FᵀF, its eigenvectors V, and F V.

Parts of FᵀF are files beside the store, which the scheduler never sees; so is F V, in single precision.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from serving.answers.errors import FitError
from serving.dataset import engine, features, jobs
from serving.dataset.export import Export
from serving.dataset.prepared import Say
from serving.shared.progress import Progress

_LEAST = 1e-13  # of the largest eigenvalue; below it is rounding
_TASKS = 32  # parts of FᵀF at most, each D × D numbers
_ROWS = 4096  # of features at work
_PRODUCTS, _VECTORS, _COORDINATES = "products_{}.npz", "vectors.npy", "coordinates"


def eigenvectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,) and vectors (n, r) of a positive semidefinite matrix, but for those that are rounding."""
    values, vectors = np.linalg.eigh(matrix)
    there = values > _LEAST * values[-1]
    return values[there], vectors[:, there]


def of_many(
    export: Export, store: Path, array: Any, workers: engine.Workers, say: Say
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues (r,) and vectors (D, r) of FᵀF, the squares (n,) of rows of F, and F V (n, r), which is a file."""
    n, dimensions = array.shape
    chunk = array.chunks[0]
    chunks = -(-n // chunk)
    of_task = chunk * -(-chunks // _TASKS)
    tasks = [slice(start, min(n, start + of_task)) for start in range(0, n, of_task)]
    start = time.monotonic()
    with engine.connected(workers) as client:
        _run(client, ProductsJob(export, store), "sums", tasks)
        parts = [np.load(store / _PRODUCTS.format(task.start)) for task in tasks]
        values, vectors = eigenvectors(np.sum([part["products"] for part in parts], 0))
        np.save(store / _VECTORS, vectors)
        shape = (n, len(values))
        np.memmap(store / _COORDINATES, np.float32, "w+", shape=shape).flush()
        _run(client, CoordinatesJob(export, store, shape), "coordinates", tasks)
    say("sums", f"{dimensions:,} × {dimensions:,} over {n:,} examples, {time.monotonic() - start:.1f} s")
    diagonal = np.concatenate([part["diagonal"] for part in parts])
    return values, vectors, diagonal, np.memmap(store / _COORDINATES, np.float32, "r", shape=shape)


def check_finite(array: np.ndarray, start: int = 0) -> None:
    """Raises a FitError if an export gives what is no number, for examples from `start` on."""
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if not finite.all():
        raise FitError(
            f"The export gives numbers that are not finite for example {start + int(np.argmin(finite)):,}: its "
            "variables may have diverged."
        )


class _SumJob(jobs.Job):
    """What reads a store of features, and needs neither export nor data."""

    def __init__(self, export: Export, store: Path) -> None:
        super().__init__(export, {})
        self._store = store

    def open(self) -> None:
        """Nothing."""

    def _parts(self, rows: slice) -> Iterator[tuple[int, np.ndarray]]:
        array: Any = zarr.open_group(str(self._store), mode="r")[features.ARRAY]
        for start in range(rows.start, rows.stop, _ROWS):
            yield start, np.asarray(array[start : min(rows.stop, start + _ROWS)], np.float64)


class ProductsJob(_SumJob):
    """Parts of FᵀF, and the squares of rows."""

    def __call__(self, rows: slice) -> None:
        """Writes those of some rows, unless they are there."""
        path = self._store / _PRODUCTS.format(rows.start)
        if path.exists():
            return
        products: Any = 0.0
        diagonal = []
        for start, part in self._parts(rows):
            check_finite(part, start)
            products = products + part.T @ part
            diagonal.append(np.einsum("nd,nd->n", part, part))
        unfinished = path.with_name(f".{path.name}")
        np.savez(unfinished, products=products, diagonal=np.concatenate(diagonal))
        unfinished.rename(path)


class CoordinatesJob(_SumJob):
    """Rows of F V."""

    def __init__(self, export: Export, store: Path, shape: tuple[int, int]) -> None:
        """Into a file of this shape."""
        super().__init__(export, store)
        self._shape = shape

    def __call__(self, rows: slice) -> None:
        """Writes some rows."""
        vectors = np.load(self._store / _VECTORS, mmap_mode="r")
        coordinates = np.memmap(self._store / _COORDINATES, np.float32, "r+", shape=self._shape)
        for start, part in self._parts(rows):
            coordinates[start : start + len(part)] = part @ vectors
        coordinates.flush()


def _run(client: Any, job: jobs.Job, title: str, tasks: list[slice]) -> None:
    progress = Progress(title, len(tasks), None, unit="parts")
    try:
        with engine.registered(client, job):
            engine.run(client, job, tasks, lambda task, result: progress.advance())
    finally:
        progress.close()
