"""The numbers of a kernel at one moment of a training."""

from __future__ import annotations

import dataclasses

import numpy as np

from serving.shared import spectrum


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A kernel after so many epochs, in numbers (`serving.shared.spectrum`).

    Attributes:
      epochs: how many epochs were trained before; 0 is the start.
      eigenvalues: (n,) of the kernel, largest first.
      mean_diagonal: tr K / n.
      effective_dimension: tr K (K + λ)⁻¹ with λ = ridge · tr K.
      alignment: with the targets, 0 to 1; None without targets.
      change: |K - K₀| / |K₀| since the start.
    """

    epochs: int
    eigenvalues: np.ndarray
    mean_diagonal: float
    effective_dimension: float
    alignment: float | None
    change: float

    @property
    def scalars(self) -> dict[str, float]:
        """The single numbers by name, as `history.history` has them after "ntk_", and TensorBoard after "ntk/"."""
        scalars = {
            "top_eigenvalue": float(self.eigenvalues[0]),
            "mean_diagonal": self.mean_diagonal,
            "effective_dimension": self.effective_dimension,
            "change": self.change,
        }
        return scalars if self.alignment is None else {**scalars, "alignment": self.alignment}


def measure(
    kernel: np.ndarray, start: np.ndarray, targets: np.ndarray | None, *, ridge: float, epochs: int
) -> Measurement:
    """The numbers of a kernel; all are NaN if it is not finite.

    Args:
      kernel: (n, n).
      start: the same before the training.
      targets: (n, k); None without.
      ridge: of the effective dimension, of the kernel's trace.
      epochs: how many were trained before.
    """
    if not np.all(np.isfinite(kernel)):
        nan = float("nan")
        return Measurement(epochs, np.full(len(kernel), nan), nan, nan, None if targets is None else nan, nan)
    values = spectrum.eigenvalues(kernel)
    return Measurement(
        epochs=epochs,
        eigenvalues=values,
        mean_diagonal=spectrum.mean_diagonal(kernel),
        effective_dimension=spectrum.effective_dimension(values, ridge),
        alignment=None if targets is None else spectrum.target_alignment(kernel, targets),
        change=spectrum.relative_change(kernel, start),
    )
