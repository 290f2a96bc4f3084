"""Probabilities of classes, flattened by the variance of their logits; float64.

The linearized network's predictive distribution (Immer et al. 2021) with MacKay's probit approximation:
p = softmax(f / √(1 + π v / 8)), v the variance of the logits, which all share. The order of the logits stays, so that
decisions are the network's.

How much they are flattened, by the ridge and the scale of v, is what makes each reference example likely without
itself. The network's own logits cannot say it, nor what kernel regression makes of them: the network was trained on
these examples, and flattening what it knows by heart never pays. So an example's logits without itself are kernel
regression from the labels of all others, brought to the logits' size by one factor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from serving.answers.leave_one_out import Spectrum, left_out

SCALES_A_DECADE = 5
DECADES = (-4, 4)  # of the scale times the mean diagonal, in squared logits
_BINS = 15  # of the calibration error


def flattened(logits: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Logits (n, O) after the probit approximation with variances (n,)."""
    return logits / np.sqrt(1.0 + math.pi / 8.0 * variance)[:, None]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax of (n, O)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits with a mean of 0 over classes, which no softmax tells from those that came."""
    return logits - logits.mean(axis=1, keepdims=True)


def scales(mean_diagonal: float) -> np.ndarray:
    """Those that are tried; 0, which leaves the network as it is, among them."""
    low, high = DECADES
    tried = np.logspace(low, high, (high - low) * SCALES_A_DECADE + 1) / mean_diagonal
    return np.concatenate([[0.0], tried])


@dataclasses.dataclass(frozen=True)
class LikelihoodCurve:
    """Sums over examples for each ridge and scale; those of two blocks are added.

    Attributes:
      losses: Σ −log p of the class, (ridges, scales).
      count: of examples.
    """

    losses: np.ndarray
    count: int

    def __add__(self, other: LikelihoodCurve) -> LikelihoodCurve:
        """Of both blocks."""
        return LikelihoodCurve(self.losses + other.losses, self.count + other.count)

    @property
    def means(self) -> np.ndarray:
        """Mean negative log-likelihood, (ridges, scales)."""
        return self.losses / self.count

    @property
    def best(self) -> tuple[int, int]:
        """The numbers of the ridge and the scale with the least."""
        ridge, scale = np.unravel_index(np.argmin(self.losses), self.losses.shape)
        return int(ridge), int(scale)


def sizes(spectrum: Spectrum, projected_logits: np.ndarray, tried: Sequence[float] | np.ndarray) -> np.ndarray:
    """The factor between fitted labels and the network's logits, by least squares, for each ridge.

    Args:
      spectrum: with Gᵀ times the centred one-hot labels.
      projected_logits: Gᵀ times the centred logits.
      tried: ridges.
    """
    factors = []
    for ridge in tried:
        shrunk = (1.0 / (spectrum.eigenvalues + ridge))[:, None] * spectrum.projected  # fitted labels are G times it
        squares = np.sum(spectrum.eigenvalues[:, None] * shrunk**2)
        factors.append(np.sum(shrunk * projected_logits) / squares if squares > 0 else 0.0)
    return np.maximum(factors, 0.0)


def curve_of_classes(
    coordinates: np.ndarray,
    labels: np.ndarray,
    outputs: int,
    spectrum: Spectrum,
    tried: Sequence[float] | np.ndarray,
    factors: Sequence[float] | np.ndarray,
    tried_scales: Sequence[float] | np.ndarray,
) -> LikelihoodCurve:
    """A block's part of the curve.

    Args:
      coordinates: G (n, r).
      labels: (n,) numbers of classes.
      outputs: number of classes.
      spectrum: with Gᵀ times the centred one-hot labels of all examples.
      tried, factors: ridges, and what `sizes` gives for them.
      tried_scales: of the variance.
    """
    one_hot = centred(np.eye(outputs)[labels])
    losses = np.zeros((len(tried), len(tried_scales)))
    for k, (ridge, factor) in enumerate(zip(tried, factors, strict=True)):
        left = left_out(coordinates, one_hot, spectrum, float(ridge))
        without = factor * (one_hot - left.errors)
        for j, scale in enumerate(tried_scales):
            losses[k, j] = negative_log_likelihood(flattened(without, scale * left.variance), labels) * len(labels)
    return LikelihoodCurve(losses, len(labels))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over examples."""
    return float(-np.mean(log_probabilities(logits)[np.arange(len(labels)), labels]))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the decisions, in bins of equal width (Guo et al. 2017, eq. 3)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [abs(np.sum(right[bins == b] - confidence[bins == b])) for b in range(_BINS)]
    return float(np.sum(gaps) / len(labels))
