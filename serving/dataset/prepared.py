"""Data sets, read once before a job: whatever is wrong with them is said before a cluster is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from serving.dataset.data import IDS, TARGETS, Data
from serving.dataset.export import Export
from serving.dataset.jobs import Source
from serving.shared.progress import Progress

Say = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that was read.

    Attributes:
      data: the data set.
      digest: of its content.
    """

    data: Data
    digest: str

    @property
    def source(self) -> Source:
        """How workers open it."""
        return Source(self.data.name, self.data.fingerprint())

    @property
    def plain(self) -> dict[str, np.ndarray]:
        """What goes into the store as it is."""
        targets = self.data.targets()
        return {IDS: self.data.ids()} | ({} if targets is None else {TARGETS: targets})


def prepare(name: str, export: Export, say: Say) -> Prepared:
    """Reads a data set from end to end.

    Raises:
      DatasetError: it cannot be read, is not of this model, or has values that are not finite.
    """
    data = Data(name, export.inputs)
    progress = Progress(f"read {name}", data.rows, None, unit="examples")
    try:
        digest = data.check(progress.advance)
    finally:
        progress.close()
    with_them = [key for key, there in ((TARGETS, data.has_y), (IDS, data.has_id)) if there]
    say("data", f"{name}: {data.rows:,} examples{f' with {chr(32).join(with_them)}' if with_them else ''}")
    return Prepared(data, digest)
