"""What is predicted: classes or numbers, and what the network's own output means."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from serving.answers.errors import FitError
from serving.shared.spectrum import classes_of

KINDS = ("classes", "numbers")
NETWORKS = ("logits", "probabilities", "numbers")
_TOLERANCE = 1e-3  # of probabilities' sum
_LEAST = 1e-30  # probability whose logarithm is taken


@dataclasses.dataclass(frozen=True)
class Task:
    """What is predicted from which output.

    Attributes:
      kind: classes or numbers.
      network: what the network's output is: logits, probabilities or numbers.
      outputs: O of the network; of two classes it may have one, the logit or probability of the second.
    """

    kind: str
    network: str
    outputs: int

    @property
    def classes(self) -> bool:
        """Whether classes are predicted."""
        return self.kind == "classes"

    def logits(self, output: np.ndarray) -> np.ndarray:
        """(n, O) float64 logits of what the network gives; of numbers these."""
        output = output.astype(np.float64)
        if self.network != "probabilities":
            return output
        logarithms = np.log(np.maximum(output, _LEAST))
        return logarithms - np.log(np.maximum(1 - output, _LEAST)) if self.outputs == 1 else logarithms

    def probabilities(self, logits: np.ndarray, variances: np.ndarray | float = 0.0) -> np.ndarray:
        """(..., O) of logits that have a variance (...), by the probit approximation (MacKay 1992)."""
        flat = logits / np.sqrt(1 + np.pi / 8 * np.asarray(variances))[..., None]
        if self.outputs == 1:
            return 1 / (1 + np.exp(-np.clip(flat, -700, 700)))
        exponents = np.exp(flat - flat.max(-1, keepdims=True))
        return exponents / exponents.sum(-1, keepdims=True)

    def log_likelihoods(self, logits: np.ndarray, variances: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(..., n) of classes y (n,), given logits (..., n, O) with variances (..., n)."""
        flat = logits / np.sqrt(1 + np.pi / 8 * variances)[..., None]
        if self.outputs == 1:
            return -np.logaddexp(0, -flat[..., 0] * (2 * y - 1))
        flat -= flat.max(-1, keepdims=True)
        return flat[..., np.arange(len(y)), y] - np.log(np.exp(flat).sum(-1))

    def residuals(self, output: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, O) float64 y - f, for classes y - p."""
        if not self.classes:
            return y - output.astype(np.float64)
        given = self.probabilities(self.logits(output))
        return (y[:, None] if self.outputs == 1 else np.eye(self.outputs)[y]) - given

    def describe(self) -> str:
        """In words."""
        many = max(self.outputs, 2) if self.classes else self.outputs
        what = f"{many} classes" if self.classes else f"{many} number{'s' * (many > 1)}"
        return f"{what}; the network gives {self.network}"


def find_task(data: str, y: np.ndarray, output: np.ndarray, kind: str = "auto", network: str = "auto") -> Task:
    """Which task the targets are of.

    Args:
      data: its name, for messages.
      y: (n,) or (n, m) targets as users have them.
      output: (n, O) of the network.
      kind: one of `KINDS`, or auto.
      network: one of `NETWORKS`, or auto: probabilities if they are all between 0 and 1 and of sum 1.

    Raises:
      FitError: they do not fit the network.
    """
    outputs = output.shape[1]
    classes = _classes(y, outputs)
    if kind == "auto":
        kind = "classes" if classes is not None else "numbers"
    if kind == "classes" and classes is None:
        wanted = f"0 to {outputs - 1}, or one-hot rows of {outputs}" if outputs > 1 else "0 and 1"
        raise FitError(f"{data}: expected classes {wanted} in 'y', received {_shape(y)}{_range(y)}.")
    if kind == "numbers" and (y.shape[1:] or (1,)) != (outputs,):
        wanted = "(n,) or (n, 1)" if outputs == 1 else f"(n, {outputs}) numbers, or classes 0 to {outputs - 1},"
        raise FitError(f"{data}: expected 'y' of {wanted} as the network's output, received {_shape(y)}{_range(y)}.")
    if kind == "numbers":
        if network not in ("auto", "numbers"):
            raise FitError(f"{data}: expected classes, for a network of {network}; 'y' is of numbers.")
        return Task(kind, "numbers", outputs)
    if network == "numbers":
        raise FitError(
            f"{data}: expected a network of logits or probabilities for classes, received --network=numbers."
        )
    return task_of_classes(output, network)


def task_of_classes(output: np.ndarray, network: str = "auto") -> Task:
    """Classes of what the network (n, O) gives: probabilities, if they are all between 0 and 1 and of sum 1."""
    if network == "auto":
        network = "probabilities" if _are_probabilities(output) else "logits"
    return Task("classes", network, output.shape[1])


def as_task(data: str, y: np.ndarray, task: Task) -> np.ndarray:
    """The targets as `task` has them: (n,) classes, or (n, O) numbers.

    Raises:
      FitError: they are of another task.
    """
    if task.classes:
        classes = _classes(y, task.outputs)
        if classes is None:
            raise FitError(f"{data}: expected classes as in --data, received {_shape(y)}{_range(y)}.")
        return classes
    if (y.shape[1:] or (1,)) != (task.outputs,):
        raise FitError(f"{data}: expected 'y' of {task.outputs} numbers as in --data, received {_shape(y)}.")
    return y.reshape(len(y), task.outputs).astype(np.float64)


def _classes(y: np.ndarray, outputs: int) -> np.ndarray | None:
    """(n,) classes, if the targets can be such."""
    if y.ndim == 2 and outputs > 1 and y.shape[1] == outputs:
        return classes_of(y)
    if y.shape[1:] not in ((), (1,)):
        return None
    flat = y.reshape(len(y))
    inside = (flat >= 0) & (flat < max(outputs, 2)) & (flat == np.floor(flat))
    return flat.astype(int) if inside.all() else None


def _are_probabilities(output: np.ndarray) -> bool:
    inside = bool(((output >= 0) & (output <= 1)).all())
    return inside and (output.shape[1] == 1 or bool((np.abs(output.sum(1) - 1) < _TOLERANCE).all()))


def _shape(y: np.ndarray) -> str:
    return f"{y.dtype} {('n', *y.shape[1:])}".replace("'", "")


def _range(y: np.ndarray) -> Any:
    return f" from {y.min()} to {y.max()}" if y.size else ""
