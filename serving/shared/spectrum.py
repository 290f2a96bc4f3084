"""Numbers that say what a kernel matrix knows: how many directions, of which targets, and how far it has moved.

All of them are computed in float64, of kernels (n, n) that are symmetric and positive semidefinite to rounding.
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-2  # times the mean of a kernel's diagonal: well above what float32 leaves of eigenvalues that are zero


def eigenvalues(kernel: np.ndarray) -> np.ndarray:
    """The eigenvalues (n,) of a kernel, largest first; what rounding leaves below zero stays as it is."""
    return np.linalg.eigvalsh(np.asarray(kernel, np.float64))[::-1]


def mean_diagonal(kernel: np.ndarray) -> float:
    """tr K / n: the kernel of an example with itself, on average."""
    return float(np.mean(np.diagonal(kernel), dtype=np.float64))


def effective_dimension(eigenvalues: np.ndarray, ridge: float) -> float:
    """tr K (K + λ)⁻¹ = Σ λᵢ / (λᵢ + λ): how many directions a ridge λ > 0 leaves to be learned, of n.

    The degrees of freedom of kernel ridge regression (Hastie & Tibshirani 1990; Zhang 2005,
    https://doi.org/10.1162/0899766054323008). Eigenvalues below zero count as zero.
    """
    if not ridge > 0:
        raise ValueError(f"Expected a ridge above 0, received {ridge}.")
    values = np.maximum(np.asarray(eigenvalues, np.float64), 0)
    return float(np.sum(values / (values + ridge)))


def target_alignment(kernel: np.ndarray, targets: np.ndarray) -> float:
    """The cosine between a kernel and that of the targets Y Yᵀ, both centred: 1 where they are proportional.

    <K_c, Y_c Y_cᵀ> / (|K_c| |Y_c Y_cᵀ|), in Frobenius' inner product (Cortes et al. 2012, arXiv 1203.0550).

    Args:
      kernel: (n, n).
      targets: (n,) or (n, k): numbers, or classes one-hot (`targets_of`).

    Returns:
      Between 0 and 1; NaN where either is constant, so that nothing is left of it when centred.
    """
    kernel, targets = np.asarray(kernel, np.float64), np.asarray(targets, np.float64)
    targets = targets.reshape(len(targets), -1)
    targets = targets - targets.mean(0)
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    inner = np.sum(targets * (centred @ targets))
    norms = np.linalg.norm(centred) * np.linalg.norm(targets.T @ targets)
    return float(inner / norms) if norms > 0 else float("nan")


def relative_change(kernel: np.ndarray, other: np.ndarray) -> float:
    """|K - K'| / |K'| in the Frobenius norm: 0 where nothing changed; NaN if the other one is zero."""
    kernel, other = np.asarray(kernel, np.float64), np.asarray(other, np.float64)
    norm = np.linalg.norm(other)
    return float(np.linalg.norm(kernel - other) / norm) if norm > 0 else float("nan")


def classes_of(y: np.ndarray) -> np.ndarray | None:
    """The class (n,) of each target as a number from 0; None of targets that are numbers.

    Classes are integers, booleans and texts, (n,) or (n, 1), and rows of one 1 among zeros (n, k).
    """
    y = np.asarray(y)
    if y.ndim > 1 and y[0].size > 1:
        if y.ndim > 2 or y.dtype.kind not in "biuf":
            return None
        is_one_hot = bool(np.all((y == 0) | (y == 1)) and np.all(np.sum(y, axis=1) == 1))
        return np.argmax(y, axis=1) if is_one_hot else None
    return None if y.dtype.kind == "f" else np.unique(y.reshape(-1), return_inverse=True)[1].reshape(-1)


def targets_of(y: np.ndarray) -> np.ndarray:
    """Targets (n, k) in float64: classes one-hot, numbers as they are."""
    y = np.asarray(y)
    classes = classes_of(y)
    if classes is None:
        return y.reshape(len(y), -1).astype(np.float64)
    return np.eye(int(np.max(classes, initial=-1)) + 1)[classes]
