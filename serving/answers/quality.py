"""What predictions are worth, against targets."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15  # of the expected calibration error


def of_classes(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy, mean negative log-likelihood and expected calibration error (Naeini et al. 2015) of (n, O), y (n,)."""
    if probabilities.shape[1] == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities], 1)
    probabilities = probabilities.astype(np.float64)
    confidences, right = probabilities.max(1), probabilities.argmax(1) == y
    likelihoods = np.maximum(probabilities[np.arange(len(y)), y], 1e-30)
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, confidences - right, BINS))
    return {
        "accuracy": float(right.mean()),
        "nll": float(-np.log(likelihoods).mean()),
        "ece": float(gaps.sum() / len(y)),
    }


def of_numbers(mean: np.ndarray, y: np.ndarray, variance: np.ndarray | None = None) -> dict[str, Any]:
    """Root mean square error of (n, O), and with variances (n,) which part is within 1 and 2 standard deviations."""
    errors = y - mean.astype(np.float64)
    quality: dict[str, Any] = {"rmse": float(np.sqrt(np.mean(np.square(errors))))}
    if variance is not None:
        deviations = np.sqrt(variance.astype(np.float64))[:, None]
        quality["coverage"] = {str(k): float(np.mean(np.abs(errors) <= k * deviations)) for k in (1, 2)}
    return quality


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The probability that a value of `outside` is larger than one of `inside`, equal ones counted half."""
    values, places = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    counts = np.bincount(places[: len(inside)], minlength=len(values))
    below = np.cumsum(counts) - counts / 2
    return float(below[places[len(inside) :]].sum() / (len(inside) * len(outside)))
