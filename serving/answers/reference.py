"""What is needed of the reference examples: their coordinates, and what the answers keep of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import zarr

from serving.answers.algebra import Coordinates
from serving.answers.errors import FitError
from serving.answers.exported import Exported
from serving.dataset import features
from serving.dataset.engine import Workers
from serving.dataset.export import Export, features_shape
from serving.dataset.prepared import Prepared, Say
from serving.shared.progress import waiting

METHODS = ("auto", "exact", "features")
NEEDED = {"exact": ("ntk", "ntk_diagonal"), "features": ("ntk_features",)}
FEW = 1000  # examples at most for which auto takes the kernel itself
_PART = 1 << 25  # entries of features at work
_LEAST = 1e-13  # of the largest eigenvalue; below it is rounding


@dataclasses.dataclass(frozen=True)
class Reference:
    """The reference examples.

    Attributes:
      method: exact or features.
      coordinates: of all of them.
      vectors: of features (D, r), the eigenvectors of FᵀF; of kernels (n, n), those of the kernel.
      diagonal: (n,) of their kernel.
      features: (n, D) of the method features, to be read in parts; None for exact.
      own: what the export keeps of them for exact, or if it cannot their inputs by signature name.
    """

    method: str
    coordinates: Coordinates
    vectors: np.ndarray
    diagonal: np.ndarray
    features: Any = None
    own: Any = None


def choose_method(method: str, exported: Exported, n: int, memory: int) -> str:
    """exact or features.

    Raises:
      FitError: the export or the memory does not allow what was asked for.
    """
    kept = exported.manifest["kernel"]["shape"][2:]
    if kept:
        raise FitError(
            f"{exported.path}: expected one number for each pair of examples, received a kernel that keeps output axes "
            f"of sizes {' × '.join(map(str, kept))}. Export with ntk.trace_axes over all of them."
        )
    bytes_of_all = n * (exported.manifest["bytes"]["features_of_an_example"] or 0)
    if method == "auto":
        small = n <= FEW and bytes_of_all <= memory and exported.has(*NEEDED["exact"])
        method = "exact" if small or not exported.has(*NEEDED["features"]) else "features"
    missing = [name for name in NEEDED[method] if not exported.has(name)]
    if missing:
        raise FitError(
            f"{exported.path}: expected the signature {missing[0]!r} for --method={method}, found "
            f"{', '.join(exported.manifest['configuration']['export']['signatures'])}. Export again with it in "
            "export.signatures."
        )
    if method == "exact" and bytes_of_all > memory:
        raise FitError(
            f"Expected a --memory of at least {math.ceil(bytes_of_all / 2**20):,} MiB for the own features of {n:,} "
            f"examples, received {memory / 2**20:,.0f} MiB. Raise it, or take --method=features."
        )
    return method


def exact(exported: Exported, rows: Prepared, say: Say) -> Reference:
    """The examples by their kernel."""
    whole = exported.inputs(rows.data.read(0, rows.data.rows))
    with waiting(f"kernel of {rows.data.rows:,}"):
        kernel = exported.symmetric(whole).numpy().astype(np.float64)
        check_finite(kernel)
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
    values = np.maximum(values, 0)
    coordinates = vectors * np.sqrt(values)
    say("kernel", f"{len(kernel):,} × {len(kernel):,}")
    own: Any = whole
    if exported.keeps:
        own = exported.model.reference_features([whole[name] for name in exported.specs])
    diagonal = np.diagonal(kernel).copy()
    of_all = Coordinates(values, lambda: iter([(0, coordinates)]), len(kernel), float(np.trace(kernel)))
    return Reference("exact", of_all, vectors, diagonal, own=own)


def by_features(export: Export, rows: Prepared, store: Path, workers: Workers, memory: int, say: Say) -> Reference:
    """The examples by their features, which are made by workers into a store, and read in parts."""
    summary = features.write_features(export, rows, store, workers, memory, say)
    say("computed", str(summary))
    array: Any = zarr.open_group(str(store), mode="r")[features.ARRAY]
    n, dimensions = rows.data.rows, features_shape(export.manifest)[-1]
    step = max(1, _PART // dimensions)

    def parts() -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, n, step):
            yield start, np.asarray(array[start : start + step], np.float64)

    # Of the two matrices with the same eigenvalues the smaller one.
    size = min(n, dimensions)
    products, diagonal = np.zeros((size, size)), np.empty(n)
    whole = np.concatenate([part for _, part in parts()]) if n < dimensions else None
    if whole is not None:
        products = whole @ whole.T
    for start, part in parts():
        check_finite(part, start)
        diagonal[start : start + len(part)] = np.einsum("nd,nd->n", part, part)
        if whole is None:
            products += part.T @ part
    values, vectors = np.linalg.eigh(products)
    there = values > _LEAST * values[-1]
    values, vectors = values[there], vectors[:, there]
    if whole is not None:
        vectors = whole.T @ (vectors / np.sqrt(values))

    def coordinates() -> Iterator[tuple[int, np.ndarray]]:
        return ((start, part @ vectors) for start, part in parts())

    of_all = Coordinates(values, coordinates, n, float(diagonal.sum()))
    return Reference("features", of_all, vectors, diagonal, features=array)


def check_finite(array: np.ndarray, start: int = 0) -> None:
    """Raises a FitError if the export gives what is no number."""
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if not finite.all():
        raise FitError(
            f"The export gives numbers that are not finite for example {start + int(np.argmin(finite)):,}: its "
            "variables may have diverged."
        )


def bytes_kept(reference: Reference) -> int:
    """Of what exact answers keep."""
    return sum(np.asarray(a).nbytes for a in tf.nest.flatten(reference.own))
