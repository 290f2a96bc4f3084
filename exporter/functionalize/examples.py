"""Examples of a model's inputs, real or drawn, with which it is checked and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from exporter.errors import ExportError
from exporter.functionalize.tracing import TensorSpec
from exporter.functionalize.vocabularies import Vocabulary
from serving.shared import reference

KEY = "export.examples"


class Examples:
    """`examples(n, seed)`: n examples for each of a model's inputs, others for each seed.

    Attributes:
      drawn: whether they are made up.
      reproducible: whether they are those of `serving.shared.reference`, which any machine can make again.
      origin: what they are, for messages.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        vocabularies: Mapping[str, Vocabulary],
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Takes what examples are made from.

        Args:
          inputs: the model's.
          vocabularies: what some of them are drawn from, by name.
          given: real examples by the inputs' names, or for a single input also as `x`; then nothing is drawn.

        Raises:
          ExportError: those given do not fit the inputs; or nothing is known of what a text may be.
        """
        self._inputs, self._vocabularies = tuple(inputs), vocabularies
        self._given = None if given is None else _fitting(self._inputs, given)
        self.drawn = given is None
        self.reproducible = self.drawn and not vocabularies
        self.origin = "the examples drawn for it" if self.drawn else f"the examples of {KEY}"
        unknown = [s.name for s in inputs if s.dtype == "string" and s.name not in vocabularies]
        if self.drawn and unknown:
            raise ExportError(
                f"Expected a vocabulary in the model from which examples of its texts can be drawn, received none for "
                f"input {', '.join(map(repr, unknown))}. Set {KEY} to a .npz or .zarr file with real inputs by name "
                f"({', '.join(s.name for s in inputs)})."
            )

    def __call__(self, n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
        """n examples, an array (n, ...) for each input; the same ones for the same seed."""
        if self._given is not None:
            rows = (seed * n + np.arange(n)) % len(self._given[0])
            return tuple(array[rows] for array in self._given)
        numbers = reference.examples(
            [(s.shape, "uint8" if s.dtype == "string" else s.dtype) for s in self._inputs], n, seed
        )
        return tuple(
            self._vocabularies[spec.name].draw((n, *_sizes(spec, seed)), spec.dtype, seed * len(numbers) + k)
            if spec.name in self._vocabularies
            else array
            for k, (spec, array) in enumerate(zip(self._inputs, numbers, strict=True))
        )


def _sizes(spec: TensorSpec, seed: int) -> list[int]:
    """An example's sizes; open ones differ from seed to seed, to show whether anything depends on them."""
    return [1 + seed % 2 if size is None else size for size in spec.shape[1:]]


def _fitting(inputs: Sequence[TensorSpec], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The examples as arrays of the inputs' types, in their order; ExportError with all that is wrong."""
    problems: list[str] = []
    arrays: list[np.ndarray] = []
    for spec in inputs:
        name = "x" if len(inputs) == 1 and spec.name not in given else spec.name
        if name not in given:
            others = ", ".join(given) or "none"
            problems.append(f"{spec.name}: expected an array of this name{' or x' * (name == 'x')}, received {others}")
            continue
        try:
            arrays.append(_as_input(spec, np.asarray(given[name])))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    counts = [len(array) for array in arrays]
    if not problems and len(set(counts)) > 1:
        problems.append(f"expected as many rows in each of {', '.join(s.name for s in inputs)}, received {counts}")
    if not problems and counts[0] < 2:
        problems.append(f"expected at least 2 rows, to see whether examples influence each other, received {counts[0]}")
    if problems:
        raise ExportError(f"{KEY}: {'; '.join(problems)}.")
    return arrays


def _as_input(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """An array in the type of an input; ValueError if it does not fit."""
    expected = f"expected {spec.dtype} ({', '.join('n' if d is None else str(d) for d in spec.shape)})"
    fits = array.ndim == len(spec.shape) and all(
        d in (None, size) for d, size in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(f"{expected}, received shape {array.shape}")
    if spec.dtype == "string":
        if array.dtype.kind not in "OSUT" or not all(isinstance(text, str | bytes) for text in array.flat):
            raise ValueError(f"{expected}, received {array.dtype}")
        texts = [text.encode() if isinstance(text, str) else bytes(text) for text in array.flat]
        result = np.empty(len(texts), object)
        result[:] = texts
        return result.reshape(array.shape)
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise ValueError(f"{expected}, received {array.dtype}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{expected} of finite numbers, received NaN or infinity")
    return array.astype(spec.dtype)
