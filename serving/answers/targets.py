"""What the reference set's y are: numbers to be predicted, or classes; and what the network's outputs are of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.answers.errors import AnswersError

_SUM = 1e-3  # how far from 1 the sum of a row of probabilities may be, in half precision too
_SMALLEST = 1e-12  # probability that has a logarithm
KINDS = ("auto", "numbers", "classes")
OUTPUTS = ("auto", "logits", "probabilities")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is predicted.

    Attributes:
      kind: numbers or classes.
      outputs: O, of the network.
      probabilities: whether these are probabilities; their logarithms are the logits then.
    """

    kind: str
    outputs: int
    probabilities: bool

    @property
    def classes(self) -> bool:
        """Whether classes are predicted."""
        return self.kind == "classes"

    def logits(self, output: np.ndarray) -> np.ndarray:
        """The network's output (n, O) as float64 numbers, of classes their logits."""
        output = output.reshape(len(output), self.outputs).astype(np.float64)
        return np.log(np.maximum(output, _SMALLEST)) if self.probabilities else output

    def targets(self, y: np.ndarray) -> np.ndarray:
        """y as (n, O) numbers; of classes one row of 0 and 1 for each."""
        if not self.classes:
            return y.reshape(len(y), self.outputs).astype(np.float64)
        if y.size == len(y):
            return np.eye(self.outputs)[y.reshape(-1).astype(int)]
        return y.astype(np.float64)


def task_of(manifest: Mapping[str, Any], y: np.ndarray, output: np.ndarray, kind: str, outputs: str) -> Task:
    """Finds out what is predicted.

    Args:
      manifest: of the export.
      y: of all reference examples.
      output: the network's, of some.
      kind: what the user says of y, one of KINDS. By themselves integers for a network of several outputs are classes,
        and so are one-hot rows.
      outputs: what the user says of the network's outputs, one of OUTPUTS. By themselves rows that are not negative and
        sum to 1 are probabilities.

    Raises:
      AnswersError: they do not fit each other.
    """
    shape = manifest["output"]["shape"][1:]
    if len(shape) > 1:
        raise AnswersError(
            f"Expected a network with one row of outputs for an example, received outputs of shape {('n', *shape)}. "
            "Choose one with ntk.output, or export a part of the model."
        )
    count = int(np.prod(shape)) if shape else 1
    columns = int(np.prod(y.shape[1:]))
    one_hot = columns == count > 1 and bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=-1) == 1))
    numbered = columns == 1 and count > 1 and bool(np.all(y == np.round(y)))
    if kind == "auto":
        kind = "classes" if one_hot or numbered else "numbers"
    if kind == "classes":
        if not (one_hot or numbered):
            raise AnswersError(
                f"Expected y of classes, integers from 0 to {count - 1} or one-hot rows of {count}, received {y.dtype} "
                f"of shape {y.shape}."
            )
        if numbered and not (y.min() >= 0 and y.max() < count):
            raise AnswersError(
                f"Expected classes from 0 to {count - 1}, one for each output of the network, received {y.min():g} to "
                f"{y.max():g}."
            )
    elif columns != count:
        raise AnswersError(
            f"Expected y of shape (n, {count}), a number for each output of the network, received {y.shape}."
        )
    rows = output.reshape(len(output), count).astype(np.float64)
    alike = bool(np.all(rows >= 0) and np.all(np.abs(rows.sum(axis=1) - 1) <= _SUM)) and count > 1
    probabilities = kind == "classes" and (outputs == "probabilities" or (outputs == "auto" and alike))
    if outputs == "probabilities" and not alike:
        raise AnswersError(
            "Expected outputs that are probabilities, received rows that do not sum to 1; say --outputs=logits."
        )
    return Task(kind, count, probabilities)
