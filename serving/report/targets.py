"""What the targets of a data set are: classes or numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from serving.shared import spectrum
from serving.shared.spectrum import classes_of

_MOST_CLASSES = 1000  # more different integers are numbers


@dataclasses.dataclass(frozen=True)
class Targets:
    """The targets of n examples.

    Attributes:
      labels: (n,) of classes; None for numbers.
      matrix: float64 (n, outputs): a column of zeros and ones for each class that is there, or the numbers.
      names: of the columns.
    """

    labels: np.ndarray | None
    matrix: np.ndarray
    names: tuple[str, ...]

    @property
    def is_classes(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def take(self, rows: Any) -> Targets:
        """Of some examples, with all columns."""
        return Targets(None if self.labels is None else self.labels[rows], self.matrix[rows], self.names)


def targets_of(y: np.ndarray, *, numbers: bool = False) -> Targets:
    """Integers, booleans and one-hot rows are classes, all else numbers.

    Args:
      y: (n,) or (n, ...).
      numbers: whether they are numbers whatever they look like.
    """
    y = np.asarray(y)
    if not numbers and (labels := classes_of(y)) is not None:
        labels = labels.astype(np.int64)
        present = np.unique(labels)
        if len(present) <= _MOST_CLASSES:
            return Targets(labels, spectrum.targets_of(labels), tuple(map(str, present)))
    matrix = y.reshape(len(y), -1).astype(np.float64)
    names = tuple(f"target {k}" for k in range(matrix.shape[1])) if matrix.shape[1] > 1 else ("target",)
    return Targets(None, matrix, names)
