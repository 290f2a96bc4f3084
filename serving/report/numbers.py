"""What a page says of a kernel. NumPy alone; float64 where sums are long."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from serving.shared.spectrum import centred_alignment


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


def participation(values: np.ndarray) -> float:
    """(Σ μ)² / Σ μ² of eigenvalues μ ≥ 0: how many equal ones are as spread."""
    squares = float(np.sum(values**2))
    return float(values.sum()) ** 2 / squares if squares else 0.0


def holding(values: np.ndarray, part: float) -> int:
    """How many of the eigenvalues, which descend, add up to that part of their sum."""
    total = float(values.sum())
    return int(np.searchsorted(np.cumsum(values) / total, part - 1e-12) + 1) if total else 0


def shuffled_alignments(centred_kernel: np.ndarray, matrix: np.ndarray, times: int, seed: int = 0) -> np.ndarray:
    """Alignments with the same targets given to other examples at random."""
    rng = np.random.default_rng(seed)
    norm = float(np.linalg.norm(centred_kernel))
    return np.array([centred_alignment(centred_kernel, rng.permutation(matrix), norm) for _ in range(times)])


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
