"""What is needed of the reference examples: their coordinates, and what the answers keep of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from serving.answers.algebra import Coordinates
from serving.answers.errors import FitError
from serving.answers.exported import Exported
from serving.answers.sums import check_finite, eigenvectors, of_many
from serving.dataset import features
from serving.dataset.engine import Workers
from serving.dataset.export import Export
from serving.dataset.prepared import Prepared, Say
from serving.shared.progress import waiting

NEEDED = {"exact": ("ntk", "ntk_diagonal"), "features": ("ntk_features",)}
FEW = 1000  # examples at most for which auto takes the kernel itself
IN_MEMORY = 2 << 30  # bytes of features in float64; more stay in files, and are summed over by workers
_PART = 1 << 25  # entries of features at work


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


def outputs_by_workers(
    export: Export, rows: Prepared, store: Path, workers: Workers, memory: int, say: Say
) -> np.ndarray:
    """The network's outputs (n, ...), made by workers into a store."""
    say("forward", str(features.write_outputs(export, rows, store, workers, memory, say)))
    array: Any = zarr.open_group(str(store), mode="r")["output"]
    return np.asarray(array[:])


def by_features(export: Export, rows: Prepared, store: Path, workers: Workers, memory: int, say: Say) -> Reference:
    """The examples by their features, which are made by workers into a store, and read in parts."""
    summary = features.write_features(export, rows, store, workers, memory, say)
    say("computed", str(summary))
    array: Any = zarr.open_group(str(store), mode="r")[features.ARRAY]
    n, dimensions = array.shape
    many = 8 * n * min(n, dimensions) > IN_MEMORY
    if many:
        values, vectors, diagonal, coordinates = of_many(export, store, array, workers, say)
    else:
        whole = np.asarray(array[:], np.float64)
        check_finite(whole)
        diagonal = np.einsum("nd,nd->n", whole, whole)
        values, vectors = eigenvectors(whole @ whole.T if n < dimensions else whole.T @ whole)
        if n < dimensions:  # of the two matrices with the same eigenvalues the smaller one
            vectors = whole.T @ (vectors / np.sqrt(values))
        coordinates = whole @ vectors

    def parts() -> Iterator[tuple[int, np.ndarray]]:
        step = max(1, _PART // max(1, len(values)))
        return ((k, np.asarray(coordinates[k : k + step], np.float64)) for k in range(0, n, step))

    of_all = Coordinates(values, parts, n, float(diagonal.sum()))
    return Reference("features", of_all, vectors, diagonal, features=array)
