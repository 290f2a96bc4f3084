"""Kernel regression in the coordinates of the kernel's eigenvectors, in float64, however many examples there are.

With coordinates u_i of the examples, UᵀU = diag(values), the kernel is K = U Uᵀ, and all of kernel regression with
ridge λ (Rasmussen and Williams 2006, chapters 2 and 5) is sums over coordinates:

    fitted values      K (K + λ)⁻¹ T      = U (values + λ)⁻¹ UᵀT
    leverages          h_i                = Σ_d u_id² / (values_d + λ)
    left out           residual_i         = (t_i - fitted_i) / (1 - h_i)
                       latent variance_i  = λ h_i / (1 - h_i), without the noise λ, for a kernel of scale 1
    weights            α = (K + λ)⁻¹ T    = (T - fitted) / λ

For features the coordinates are F V with the eigenvectors V of FᵀF, for a kernel Q values^½ with its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from serving.answers.targets import Task

RIDGES = np.logspace(-6, 2, 33)  # relative to the mean of the kernel's diagonal
# Scales are tried so that π/8 of the logits' variance has about this mean. The least of them changes nothing.
_FLATTENINGS = np.concatenate([[1e-4], np.logspace(-3, 3, 25)])
_ENTRIES = 1 << 22  # of an array at work


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The examples as the kernel sees them.

    Attributes:
      values: (D,) the kernel's eigenvalues, none negative.
      parts: yields rows of coordinates from an example on: (start, (n, D)); each time anew.
      count: of examples.
      trace: of the kernel.
    """

    values: np.ndarray
    parts: Callable[[], Iterator[tuple[int, np.ndarray]]]
    count: int
    trace: float

    def products(self, targets: np.ndarray) -> np.ndarray:
        """Uᵀ targets, (D, m)."""
        total = np.zeros((len(self.values), targets.shape[1]))
        for start, part in self.parts():
            total += part.T @ targets[start : start + len(part)]
        return total


@dataclasses.dataclass(frozen=True)
class Selection:
    """A ridge and what was tried.

    Attributes:
      ridges: (L,) that were tried.
      losses: (L,) of each by leave-one-out: mean squared error, or negative log-likelihood.
      ridge: the best of them, or the one that was given.
      scale: of the kernel, so that it is the covariance of what is predicted.
      loss: of ridge and scale.
    """

    ridges: np.ndarray
    losses: np.ndarray
    ridge: float
    scale: float
    loss: float


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What is said of each example by all others.

    Attributes:
      values: (n, m) predicted targets.
      latent: (n,) variance of a kernel of scale 1, without noise.
      leverages: (n,).
      weights: (n, m): α.
    """

    values: np.ndarray
    latent: np.ndarray
    leverages: np.ndarray
    weights: np.ndarray


def select(
    coordinates: Coordinates,
    task: Task,
    targets: np.ndarray,
    y: np.ndarray,
    ridge: float | None,
    network: np.ndarray | None = None,
) -> Selection:
    """The ridge of the least leave-one-out loss, with the scale that goes with it.

    For numbers the loss is the squared error, and the scale makes errors, those of the network among them, as large as
    their deviations. For classes it is the negative log-likelihood of what all others say of an example, over ridges
    and scales.

    Args:
      coordinates: of the examples.
      task: classes or numbers.
      targets: (n, O): for numbers the residuals, for classes the network's logits.
      y: (n, O) or (n,): as `task` has them.
      ridge: the only one to try, if it is given.
      network: (n,) of numbers what `network_fit` gives.
    """
    ridges = RIDGES * coordinates.trace / coordinates.count if ridge is None else np.array([ridge])
    scales = len(_FLATTENINGS) if task.classes else 1
    losses, squares = np.zeros((len(ridges), scales)), np.zeros(len(ridges))
    flattenings = _scales(coordinates, ridges) if task.classes else None
    for start, values, latent, rest in _left_out(coordinates, targets, ridges):
        rows = slice(start, start + values.shape[1])
        if flattenings is None:
            squared = np.square(targets[rows] - values)
            losses[:, 0] += squared.sum((1, 2))
            own = np.ones(rest.shape[1]) if network is None else network[rows]
            squares += np.einsum("lno,ln->l", squared, rest / (ridges[:, None] * np.square(own)))
        else:
            for k in range(scales):
                variances = flattenings[:, k, None] * latent
                losses[:, k] -= task.log_likelihoods(values, variances, y[rows]).sum(1)
    losses /= targets.size if not task.classes else coordinates.count
    best, which = np.unravel_index(np.argmin(losses), losses.shape)
    scale = squares[best] / targets.size if flattenings is None else flattenings[best, which]
    return Selection(ridges, losses.min(1), float(ridges[best]), float(scale), float(losses[best, which]))


def network_fit(coordinates: Coordinates, targets: np.ndarray, output: np.ndarray) -> np.ndarray:
    """(n,) 1 - leverages of the network itself, as if it were kernel regression of the targets.

    Its ridge is that of which the fitted values are nearest to the network's output. A residual of the network divided
    by this is what it would be had the network not seen the example: leave-one-out by influence (Koh and Liang 2017,
    arXiv 1703.04730), in the kernel of the trained network.
    """
    ridges = RIDGES * coordinates.trace / coordinates.count
    distances = np.zeros(len(ridges))
    for start, values, _, rest in _left_out(coordinates, targets, ridges):
        rows = slice(start, start + values.shape[1])
        fitted = targets[rows] - (targets[rows] - values) * rest[:, :, None]
        distances += np.square(fitted - output[rows]).sum((1, 2))
    nearest = ridges[[np.argmin(distances)]]
    return np.concatenate([rest[0] for *_, rest in _left_out(coordinates, targets[:, :0], nearest)])


def left_out(coordinates: Coordinates, targets: np.ndarray, ridge: float) -> LeftOut:
    """What all others say of each example, at one ridge."""
    values, latent, rests = np.empty(targets.shape), np.empty(coordinates.count), np.empty(coordinates.count)
    for start, some, variances, rest in _left_out(coordinates, targets, np.array([ridge])):
        rows = slice(start, start + some.shape[1])
        values[rows], latent[rows], rests[rows] = some[0], variances[0], rest[0]
    weights = (targets - values) * (rests / ridge)[:, None]
    return LeftOut(values, latent, 1 - rests, weights)


def _left_out(
    coordinates: Coordinates, targets: np.ndarray, ridges: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For parts of the examples the first one's number, left out values (L, n, m), latent variances, 1 - leverages."""
    products = coordinates.products(targets)
    inverses = 1 / (coordinates.values + ridges[:, None])
    step = max(1, _ENTRIES // (len(ridges) * max(targets.shape[1], 1)))
    for first, part in coordinates.parts():
        for start in range(first, first + len(part), step):
            some = part[start - first : start - first + step]
            known = targets[start : start + len(some)]
            rest = np.maximum(1 - inverses @ np.square(some).T, np.finfo(float).eps)
            fitted = np.stack([some @ (inverse[:, None] * products) for inverse in inverses])
            values = known - (known - fitted) / rest[:, :, None]
            yield start, values, ridges[:, None] * (1 - rest) / rest, rest


def _scales(coordinates: Coordinates, ridges: np.ndarray) -> np.ndarray:
    """Scales to try with each ridge, (L, S), by the mean variance of examples that are left out."""
    none = np.zeros((coordinates.count, 0))
    total = sum(latent.sum(1) for _, _, latent, _ in _left_out(coordinates, none, ridges))
    mean = np.maximum(total / coordinates.count, np.finfo(np.float32).tiny)
    return _FLATTENINGS * (8 / np.pi) / mean[:, None]
