"""Kernel regression and its leave-one-out predictions, for many ridges at once and by blocks of examples; float64.

With the kernel K of the n reference examples, written K = G Gᵀ where GᵀG = diag(Λ) (rows of G are an example's
coordinates: U √Λ of K = U Λ Uᵀ, or F V of features F with FᵀF = V Λ Vᵀ), and ridge λ:

    fitted values           K (K + λ)⁻¹ R = G diag(1 / (Λ + λ)) GᵀR
    leverage                h_i = [K (K + λ)⁻¹]_ii = Σ_d G_id² / (Λ_d + λ)
    left out, prediction    R_i − (R_i − fitted_i) / (1 − h_i)
    left out, variance      λ h_i / (1 − h_i), relative to the prior's scale; with noise λ / (1 − h_i)

(Rasmussen and Williams 2006, eq. 5.10 to 5.12, with [(K + λ)⁻¹]_ii = (1 − h_i) / λ.) Every sum over examples is one
over blocks, so that a data set of any size is passed in parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

RIDGES_A_DECADE = 6
DECADES = (-6, 2)  # of the ridge, relative to the kernel's mean diagonal


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What all blocks share.

    Attributes:
      eigenvalues: Λ (r,), none negative.
      projected: GᵀR (r, O) of whatever R is regressed.
    """

    eigenvalues: np.ndarray
    projected: np.ndarray


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Examples of a block, each without itself.

    Attributes:
      errors: (n, O), R minus the prediction from all others.
      variance: (n,) of the function, relative to the prior's scale.
      leverage: (n,) h.
      alpha: (n, O), (K + λ)⁻¹ R.
    """

    errors: np.ndarray
    variance: np.ndarray
    leverage: np.ndarray
    alpha: np.ndarray


def ridges(mean_diagonal: float) -> np.ndarray:
    """Those that are tried."""
    low, high = DECADES
    return mean_diagonal * np.logspace(low, high, (high - low) * RIDGES_A_DECADE + 1)


def left_out(coordinates: np.ndarray, targets: np.ndarray, spectrum: Spectrum, ridge: float) -> LeftOut:
    """Of a block of G (n, r) and R (n, O)."""
    shrunk = 1.0 / (spectrum.eigenvalues + ridge)
    # Of a full spectrum 1 − h is a sum of positive terms; as a difference it would keep no digits for small ridges.
    leverage = np.minimum((coordinates**2) @ shrunk, 1.0 - 1e-12)
    residuals = targets - coordinates @ (shrunk[:, None] * spectrum.projected)
    rest = 1.0 - leverage
    return LeftOut(residuals / rest[:, None], ridge * leverage / rest, leverage, residuals / ridge)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Sums over examples for each ridge; those of two blocks are added.

    Attributes:
      squares: Σ e² over examples and outputs.
      standardized: Σ e² / v, with v the variance with noise.
      count: of examples times outputs.
    """

    squares: np.ndarray
    standardized: np.ndarray
    count: int

    def __add__(self, other: Curve) -> Curve:
        """Of both blocks."""
        return Curve(self.squares + other.squares, self.standardized + other.standardized, self.count + other.count)

    @property
    def errors(self) -> np.ndarray:
        """Root mean square of what is left out, for each ridge."""
        return np.sqrt(self.squares / self.count)

    @property
    def scales(self) -> np.ndarray:
        """The prior's, for which standardized errors have a mean square of 1: the likelihood's maximum."""
        return self.standardized / self.count


def curve_of_numbers(
    coordinates: np.ndarray, targets: np.ndarray, spectrum: Spectrum, tried: Sequence[float] | np.ndarray
) -> Curve:
    """A block's part of the curve."""
    squares, standardized = np.zeros(len(tried)), np.zeros(len(tried))
    for k, ridge in enumerate(tried):
        left = left_out(coordinates, targets, spectrum, float(ridge))
        squares[k] = np.sum(left.errors**2)
        standardized[k] = np.sum(left.errors**2 / (left.variance + ridge)[:, None])
    return Curve(squares, standardized, targets.size)
