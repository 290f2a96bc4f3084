"""The examples that a page is about: all of a data set, or some drawn at random, always the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from serving.dataset.data import Data, Rows
from serving.shared.progress import Progress

_AT_ONCE = 1024  # rows that are read together


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some examples of a data set.

    Attributes:
      examples: their inputs, y and id.
      rows: (n,) where they are in the data set.
      total: of the data set.
      data: the data set.
    """

    examples: Rows
    rows: np.ndarray
    total: int
    data: Data

    def __len__(self) -> int:
        """How many they are."""
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """What to call each: its id, or its row."""
        if self.examples.id is not None:
            return [str(name) for name in self.examples.id]
        return [f"row {row}" for row in self.rows]


def draw(data: Data, most: int, seed: int = 0) -> Sample:
    """At most so many examples, in their order.

    Raises:
      DatasetError: values are not finite, or not as the model has them.
    """
    progress = Progress(f"read {data.name}", data.rows, None, unit="examples")
    try:
        data.check(progress.advance)
    finally:
        progress.close()
    rows = np.arange(data.rows)
    if data.rows > most:
        rows = np.sort(np.random.default_rng(seed).choice(data.rows, most, replace=False))
    return Sample(read_rows(data, rows), rows, data.rows, data)


def read_rows(data: Data, rows: np.ndarray) -> Rows:
    """Those examples; `rows` ascend."""
    parts = []
    for first in range(0, data.rows, _AT_ONCE):
        here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + _AT_ONCE)]
        if len(here):
            parts.append(take(data.read(int(here[0]), int(here[-1]) + 1), here - here[0]))
    return _joined(parts)


def take(examples: Rows, places: np.ndarray | slice) -> Rows:
    """Some of some examples."""
    inputs = {name: array[places] for name, array in examples.inputs.items()}
    y, ids = (None if array is None else array[places] for array in (examples.y, examples.id))
    return Rows(inputs, y, ids)


def _joined(parts: Sequence[Rows]) -> Rows:
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    y = None if parts[0].y is None else np.concatenate([part.y for part in parts if part.y is not None])
    ids = None if parts[0].id is None else np.concatenate([part.id for part in parts if part.id is not None])
    return Rows(inputs, y, ids)
