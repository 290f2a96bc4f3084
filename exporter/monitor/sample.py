"""The examples that a kernel is followed on: drawn once, of all classes, ordered by class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.errors import ExportError
from exporter.functionalize.model_kinds import Source
from exporter.functionalize.structures import leaves
from serving.shared.reference import random_bits
from serving.shared.spectrum import classes_of, targets_of


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some examples of a data set, ordered by class, or by the target if that is one number.

    Attributes:
      inputs: arrays (n, ...), by their keys if these are names.
      is_named: whether they are.
      targets: (n, k) as `spectrum.target_alignment` takes them; None if there are none.
      indices: (n,) where they stood in the data.
    """

    inputs: Mapping[str, np.ndarray]
    is_named: bool
    targets: np.ndarray | None
    indices: np.ndarray

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.indices)

    def fewer(self, count: int) -> tuple[Sample, np.ndarray]:
        """So many of its examples, of all classes as before, and their positions in it."""
        chosen = _evenly(len(self), count)
        inputs = {key: a[chosen] for key, a in self.inputs.items()}
        targets = None if self.targets is None else self.targets[chosen]
        return Sample(inputs, self.is_named, targets, self.indices[chosen]), chosen

    def inputs_of(self, source: Source) -> dict[str, np.ndarray]:
        """The arrays by the names of a model's inputs, in its order; ExportError if they do not fit it."""
        specs = {named.name: named.spec for _, named in leaves(source.inputs)}
        expected = "; ".join(_described(name, spec.shape[1:], spec.dtype.name) for name, spec in specs.items())
        received = "; ".join(_described(key, a.shape[1:], a.dtype.name) for key, a in self.inputs.items())
        problem = ExportError(
            f"x: expected the inputs of {source.name!r} ({expected}), received {received}; pass what its `fit` takes."
        )
        if len(self.inputs) != len(specs):
            raise problem
        keys = list(specs) if self.is_named and set(self.inputs) == set(specs) else list(self.inputs)
        result = {}
        for (name, spec), key in zip(specs.items(), keys, strict=True):
            array = self.inputs[key]
            if not spec.shape[1:].is_compatible_with(array.shape[1:]) or spec.shape.rank != array.ndim:
                raise problem
            if (spec.dtype == tf.string) != (array.dtype.kind in "OSU"):
                raise problem
            result[name] = array
        return result


def draw(x: Any, y: Any, count: int, seed: int) -> Sample:
    """At most `count` examples of x, classes of y in the proportions that they have there.

    Args:
      x: an array, or a list, tuple or dict of them, with examples on axis 0.
      y: targets with as many entries on axis 0, or None.
      count: of examples.
      seed: of the draw, which is the same on any machine.

    Raises:
      ExportError: these are no arrays, or not of as many examples.
    """
    given = {path: _array(a) for path, a in leaves(x)}
    sizes = {f"x {key}".strip(): len(a) for key, a in given.items()}
    targets = None if y is None else _array(y, "y")
    if targets is not None:
        sizes["y"] = len(targets)
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ExportError(f"Expected as many examples in x and y, at least one, received {listed}.")
    n = next(iter(sizes.values()))
    order = np.argsort(random_bits(n, seed), kind="stable")
    if targets is not None and (key := _key(targets)) is not None:
        order = order[np.argsort(key[order], kind="stable")]
    indices = order[_evenly(n, min(count, n))]
    return Sample(
        inputs={key: a[indices] for key, a in given.items()},
        is_named=isinstance(x, Mapping),
        targets=None if targets is None else targets_of(targets)[indices],
        indices=indices,
    )


def _key(y: np.ndarray) -> np.ndarray | None:
    """What examples are ordered by; None if nothing orders them."""
    classes = classes_of(y)
    return classes if classes is not None else y.reshape(-1) if y.size == len(y) else None


def _evenly(n: int, count: int) -> np.ndarray:
    """`count` of n positions, as far from each other as they can be."""
    return ((np.arange(count) + 0.5) * n / count).astype(int)


def _array(value: Any, what: str = "x") -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError):
        array = np.empty(())
    if array.ndim == 0:
        raise ExportError(
            f"{what}: expected arrays with examples on axis 0, received {type(value).__name__}; of a tf.data.Dataset "
            "pass some examples: x, y = next(iter(dataset.unbatch().batch(1000)))."
        )
    return array


def _described(name: str, shape: Iterable[int | None], dtype: str) -> str:
    sizes = ", ".join(["n", *("any" if size is None else str(size) for size in shape)])
    return f"{name} {dtype} ({sizes})".strip()
