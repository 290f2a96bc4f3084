"""Numbers that say what a kernel matrix knows: how many directions, of which targets, and how far it has moved.

All of them are computed in float64, of kernels (n, n) that are symmetric and positive semidefinite to rounding.
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-3  # times a kernel's trace: well above what float32 leaves of eigenvalues that are zero


def eigenvalues(kernel: np.ndarray) -> np.ndarray:
    """The eigenvalues (n,) of a kernel, largest first; what rounding leaves below zero stays as it is."""
    return np.linalg.eigvalsh(np.asarray(kernel, np.float64))[::-1]


def mean_diagonal(kernel: np.ndarray) -> float:
    """tr K / n: the kernel of an example with itself, on average."""
    return float(np.mean(np.diagonal(kernel), dtype=np.float64))


def effective_dimension(eigenvalues: np.ndarray, ridge: float = RIDGE) -> float:
    """tr K (K + λ)⁻¹ = Σ λᵢ / (λᵢ + λ), λ = ridge · tr K, ridge > 0: how many directions λ leaves to be learned, of n.

    The degrees of freedom of kernel ridge regression (Hastie & Tibshirani 1990; Zhang 2005,
    https://doi.org/10.1162/0899766054323008). Eigenvalues below zero count as zero; of a zero kernel it is 0.
    """
    if not ridge > 0:
        raise ValueError(f"Expected a ridge above 0, received {ridge}.")
    values = np.maximum(np.asarray(eigenvalues, np.float64), 0)
    total = values.sum()
    return float(np.sum(values / (values + ridge * total))) if total > 0 else 0.0


def centred(kernel: np.ndarray) -> np.ndarray:
    """float64 H K H with H = 1 - 11ᵀ/n: the kernel of features whose mean is taken off."""
    kernel = np.asarray(kernel).astype(np.float64)
    rows, columns = kernel.mean(1), kernel.mean(0)
    kernel -= rows[:, None]
    kernel -= columns
    kernel += rows.mean()
    return kernel


def target_alignment(kernel: np.ndarray, targets: np.ndarray) -> float:
    """The cosine between a kernel and that of the targets Y Yᵀ, both centred: 1 where they are proportional.

    <K_c, Y_c Y_cᵀ> / (|K_c| |Y_c Y_cᵀ|), in Frobenius' inner product (Cortes et al. 2012, arXiv 1203.0550).

    Args:
      kernel: (n, n).
      targets: (n,) or (n, k): numbers, or classes one-hot (`targets_of`).

    Returns:
      Between 0 and 1; NaN where either is constant, so that nothing is left of it when centred.
    """
    return centred_alignment(centred(kernel), targets)


def centred_alignment(kernel: np.ndarray, targets: np.ndarray, norm: float | None = None) -> float:
    """`target_alignment` of a kernel that is centred, and has this norm."""
    targets = np.asarray(targets, np.float64).reshape(len(targets), -1)
    targets = targets - targets.mean(0)
    norm = float(np.linalg.norm(kernel)) if norm is None else norm
    norms = norm * np.linalg.norm(targets.T @ targets)
    return float(np.sum(targets * (kernel @ targets)) / norms) if norms > 0 else float("nan")


def relative_change(kernel: np.ndarray, other: np.ndarray) -> float:
    """|K - K'| / |K'| in the Frobenius norm: 0 where nothing changed; NaN if the other one is zero."""
    kernel, other = np.asarray(kernel, np.float64), np.asarray(other, np.float64)
    norm = np.linalg.norm(other)
    return float(np.linalg.norm(kernel - other) / norm) if norm > 0 else float("nan")


def classes_of(y: np.ndarray) -> np.ndarray | None:
    """The class (n,) of each target as it is, of one-hot rows its column; None of targets that are numbers.

    Classes are integers, booleans and texts, (n,) or (n, 1), and rows of one 1 among zeros (n, k).
    """
    y = np.asarray(y)
    if y.ndim > 1 and y[0].size > 1:
        if y.ndim > 2 or y.dtype.kind not in "biuf":
            return None
        is_one_hot = bool(np.all((y == 0) | (y == 1)) and np.all(np.sum(y, axis=1) == 1))
        return np.argmax(y, axis=1) if is_one_hot else None
    return None if y.dtype.kind == "f" else y.reshape(-1)


def targets_of(y: np.ndarray) -> np.ndarray:
    """Targets (n, k) in float64: a column of zeros and ones for each class that is there, numbers as they are."""
    y = np.asarray(y)
    classes = classes_of(y)
    if classes is None:
        return y.reshape(len(y), -1).astype(np.float64)
    present, index = np.unique(classes, return_inverse=True)
    return np.eye(len(present))[index]
