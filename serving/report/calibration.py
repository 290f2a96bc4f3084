"""Whether predictions are right, and as sure as they say. NumPy alone."""

from __future__ import annotations

import dataclasses

import numpy as np

BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How often predictions of about the same confidence are right.

    Attributes:
      accuracy: of all.
      loss: mean negative log-probability of the right class, in nats.
      counts, confidences, accuracies: of each bin that has predictions.
      edges: (lower, upper) of each of these bins.
    """

    accuracy: float
    loss: float
    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    edges: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence|, weighed by counts (Guo et al. 2017)."""
        weights = self.counts / self.counts.sum()
        return float(np.sum(weights * np.abs(self.accuracies - self.confidences)))

    @property
    def confidence(self) -> float:
        """The mean of all."""
        return float(np.sum(self.counts * self.confidences) / self.counts.sum())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Of the most probable class, in bins of equal width.

    Args:
      probabilities: (n, C).
      labels: (n,) from 0 to C - 1.
      bins: their number.
    """
    probabilities = np.asarray(probabilities, np.float64)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = (predicted == labels).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (lower, upper]
    counts = np.bincount(place, minlength=bins)
    there = counts > 0
    confidences, accuracies = (
        np.bincount(place, w, minlength=bins)[there] / counts[there] for w in (confidence, right)
    )
    (numbers,) = np.nonzero(there)
    own = np.take_along_axis(probabilities, labels[:, None].astype(int), 1)
    loss = float(-np.mean(np.log(np.maximum(own, np.finfo(np.float64).tiny))))
    edges = np.stack([numbers / bins, (numbers + 1) / bins], 1)
    return Reliability(float(right.mean()), loss, counts[there], confidences, accuracies, edges)


def probabilities_of(output: np.ndarray, kind: str | None = None) -> np.ndarray:
    """(n, C) from a network's outputs (n, C), or of two classes (n, 1).

    Args:
      output: of the network, or of a prediction.
      kind: "logits" or "probabilities"; None to tell by the values.
    """
    output = np.asarray(output, np.float64)
    if kind not in ("logits", "probabilities"):
        in_range = bool(np.all(output >= -1e-6)) and bool(np.all(output <= 1 + 1e-6))
        sums = output.shape[1] == 1 or bool(np.all(np.abs(output.sum(1) - 1) < 1e-3))
        kind = "probabilities" if in_range and sums else "logits"
    if output.shape[1] == 1:
        p = output if kind == "probabilities" else 1 / (1 + np.exp(-np.clip(output, -700, 700)))
        return np.concatenate([1 - p, p], 1)
    if kind == "probabilities":
        return output
    shifted = np.exp(output - output.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def coverage(mean: np.ndarray, deviation: np.ndarray, targets: np.ndarray, within: float) -> float:
    """How many of the targets (n, outputs) are within so many standard deviations (n,) of the mean (n, outputs)."""
    return float(np.mean(np.abs(mean - targets) <= within * deviation[:, None]))
