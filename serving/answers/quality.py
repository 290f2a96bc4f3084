"""What predictions are worth, against targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

BINS = 15  # of the expected calibration error


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How often predictions of about the same confidence are right.

    Attributes:
      accuracy: of all.
      nll: mean negative log-likelihood of the right class, in nats.
      counts, confidences, accuracies: of each bin that has predictions.
      edges: (lower, upper) of each of these bins.
    """

    accuracy: float
    nll: float
    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    edges: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): the mean of |accuracy - confidence|, weighed by counts."""
        return float(np.average(np.abs(self.accuracies - self.confidences), weights=self.counts))

    @property
    def confidence(self) -> float:
        """The mean of all."""
        return float(np.average(self.confidences, weights=self.counts))


def reliability(probabilities: np.ndarray, y: np.ndarray) -> Reliability:
    """Of the most probable class, in bins of equal width, of (n, O) and y (n,); of two classes O may be 1."""
    probabilities = probabilities.astype(np.float64)
    if probabilities.shape[1] == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities], 1)
    confidences, right = probabilities.max(1), probabilities.argmax(1) == y
    likelihoods = np.maximum(probabilities[np.arange(len(y)), y], 1e-30)
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    bins, places, counts = np.unique(places, return_inverse=True, return_counts=True)
    confidence, accuracy = (np.bincount(places, values) / counts for values in (confidences, right))
    edges = np.stack([bins, bins + 1], 1) / BINS
    return Reliability(float(right.mean()), float(-np.log(likelihoods).mean()), counts, confidence, accuracy, edges)


def of_classes(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy, mean negative log-likelihood and expected calibration error of (n, O), y (n,)."""
    of = reliability(probabilities, y)
    return {"accuracy": of.accuracy, "nll": of.nll, "ece": of.error}


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
