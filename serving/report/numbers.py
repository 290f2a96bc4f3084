"""What a page says of a kernel. NumPy alone; float64 where sums are long."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np


def cosine(kernel: np.ndarray) -> np.ndarray:
    """float32 (n, n): K_ij / √(K_ii K_jj); 0 where an example's own kernel is not positive."""
    norms = np.sqrt(np.maximum(np.diag(kernel).astype(np.float64), 0))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0).astype(np.float32)
    return kernel.astype(np.float32, copy=False) * inverse[:, None] * inverse


def asymmetry(kernel: np.ndarray) -> float:
    """The largest |K - Kᵀ| relative to the largest entry."""
    largest = float(np.max(np.abs(kernel), initial=0.0))
    return float(np.max(np.abs(kernel - kernel.T), initial=0.0)) / largest if largest else 0.0


def typical_first(cosines: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The order of the examples by class, in each class those first that are most alike the others of it."""
    own = np.zeros(len(labels))
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        own[rows] = cosines[np.ix_(rows, rows)].mean(1, dtype=np.float64)
    return np.lexsort((-own, labels))


def blocks(groups: np.ndarray, most: int) -> list[slice]:
    """At most about so many ranges of rows, of one group each; equal ones of a group stand together in `groups`."""
    n = len(groups)
    edges = [0, *(np.flatnonzero(groups[1:] != groups[:-1]) + 1), n]
    step = max(1.0, n / most)
    ranges = []
    for start, stop in itertools.pairwise(edges):
        cuts = np.linspace(start, stop, max(1, round((stop - start) / step)) + 1).astype(int)
        ranges += [slice(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    return ranges


def pooled(matrix: np.ndarray, ranges: Sequence[slice]) -> np.ndarray:
    """float64: the means over blocks of rows and columns."""
    starts = [r.start for r in ranges]
    counts = np.array([r.stop - r.start for r in ranges], np.float64)
    rows = np.add.reduceat(matrix, starts, axis=0, dtype=np.float64)
    return np.add.reduceat(rows, starts, axis=1) / counts[:, None] / counts


def means_between(cosines: np.ndarray, indicator: np.ndarray) -> np.ndarray:
    """(C, C) mean cosines of pairs of classes, without examples with themselves; NaN where there is no pair.

    Args:
      cosines: (n, n).
      indicator: (n, C) of zeros and ones.
    """
    counts = indicator.sum(0)
    sums = indicator.T @ (cosines @ indicator.astype(np.float32)).astype(np.float64)
    sums -= np.diag(indicator.T @ np.diag(cosines).astype(np.float64))
    pairs = np.outer(counts, counts) - np.diag(counts)
    return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a symmetric positive semidefinite matrix.

    Attributes:
      values: descending; those that rounding made negative are 0.
      smallest: before.
    """

    values: np.ndarray
    smallest: float

    @property
    def trace(self) -> float:
        """Their sum."""
        return float(self.values.sum())

    def effective_dimension(self, ridge: float) -> float:
        """tr K (K + λ)⁻¹: how many directions a ridge λ leaves free."""
        if ridge <= 0:
            return float(np.count_nonzero(self.values))
        return float(np.sum(self.values / (self.values + ridge)))

    @property
    def participation(self) -> float:
        """(Σ μ)² / Σ μ²: how many equal eigenvalues are as spread."""
        squares = float(np.sum(self.values**2))
        return self.trace**2 / squares if squares else 0.0

    def holding(self, part: float) -> int:
        """How many of the largest add up to that part of the trace."""
        if not self.trace:
            return 0
        return int(np.searchsorted(np.cumsum(self.values) / self.trace, part - 1e-12) + 1)


def spectrum(kernel: np.ndarray) -> Spectrum:
    """Of a symmetric matrix, in float64."""
    wide = kernel.astype(np.float64)
    values = np.linalg.eigvalsh((wide + wide.T) / 2)[::-1]
    return Spectrum(np.maximum(values, 0.0), float(values[-1]))


def centred(kernel: np.ndarray) -> np.ndarray:
    """float64 H K H with H = 1 - 11ᵀ/n: the kernel of features whose mean is taken off."""
    wide = kernel.astype(np.float64)
    rows, columns = wide.mean(1), wide.mean(0)
    wide -= rows[:, None]
    wide -= columns
    wide += rows.mean()
    return wide


def alignment(centred_kernel: np.ndarray, matrix: np.ndarray, norm: float | None = None) -> float:
    """⟨K, Y Yᵀ⟩ / (|K| |Y Yᵀ|) of a centred kernel and targets, which are centred here; NaN if either is 0.

    Cortes, Mohri, Rostamizadeh 2012, https://jmlr.org/papers/v13/cortes12a.html, definition 4.

    Args:
      centred_kernel: (n, n).
      matrix: (n, outputs).
      norm: of the kernel, if it is known.
    """
    y = matrix - matrix.mean(0)
    norm = float(np.linalg.norm(centred_kernel)) if norm is None else norm
    scale = norm * float(np.linalg.norm(y.T @ y))
    return float(np.sum(y * (centred_kernel @ y))) / scale if scale > 0 else float("nan")


def shuffled_alignments(centred_kernel: np.ndarray, matrix: np.ndarray, times: int, seed: int = 0) -> np.ndarray:
    """Alignments with the same targets given to other examples at random."""
    rng = np.random.default_rng(seed)
    norm = float(np.linalg.norm(centred_kernel))
    return np.array([alignment(centred_kernel, rng.permutation(matrix), norm) for _ in range(times)])


def neighbours(cosines: np.ndarray, count: int) -> np.ndarray:
    """(n, count) of the most alike other examples of each, the most alike first."""
    n = len(cosines)
    count = min(count, n - 1)
    if count <= 0:
        return np.zeros((n, 0), np.int64)
    others = cosines.copy()
    np.fill_diagonal(others, -np.inf)
    some = np.argpartition(-others, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(others, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)
