"""What workers do: a job is a plugin of each Dask worker, which opens data, export and store there once.

Nothing of a data set passes the scheduler: a task is the place of a tile, its result how it went.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from distributed import WorkerPlugin, get_worker

from serving.dataset.data import Data, Rows
from serving.dataset.errors import DatasetError
from serving.dataset.export import Export
from serving.dataset.model import Model
from serving.dataset.store import Store
from serving.dataset.tiles import Tile

PACKAGES = ("ntk-exporter", "tensorflow", "numpy", "zarr")


@dataclasses.dataclass(frozen=True)
class Done:
    """How a tile went.

    Attributes:
      worker: its process.
      seconds: that it took there.
      bytes: written.
    """

    worker: str
    seconds: float
    bytes: int


def versions() -> dict[str, str]:
    """Of the packages here that results depend upon."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set as every worker can open it; `fingerprint` tells whether it is the same there."""

    name: str
    fingerprint: str

    def open(self, inputs: list[dict[str, Any]]) -> Data:
        """Opens it.

        Raises:
          DatasetError: it is not there, or is another.
        """
        data = Data(self.name, inputs)
        if data.fingerprint() != self.fingerprint:
            raise DatasetError(f"{self.name} is not on every worker what it is where the job was started.")
        return data


class Job(WorkerPlugin):
    """What all jobs have: an export and data sets.

    Attributes:
      name: of the plugin.
    """

    idempotent = True

    def __init__(self, export: Export, sources: Mapping[str, Source]) -> None:
        """Keeps what is to be opened on the workers."""
        self.name = f"ntk-{os.urandom(8).hex()}"
        self._export, self._sources = export, dict(sources)
        self._versions, self._directory = versions(), os.getcwd()

    def setup(self, worker: Any) -> None:
        """On a worker, before its first task.

        Raises:
          DatasetError: it has other versions of what results depend upon.
        """
        here = versions()
        differ = [f"{n} {here[n]}, expected {v}" for n, v in self._versions.items() if here[n] != v]
        if differ:
            raise DatasetError(
                f"The worker {worker.address} has {'; '.join(differ)}: results would not be those of other workers. "
                "Install the same versions everywhere."
            )
        self._threads = worker.state.nthreads
        self._opening = threading.Lock()
        self._model: Model | None = None
        self._data: dict[str, Data] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is sent; nothing that a worker has opened."""
        opened = ("_opening", "_model", "_data")
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    def __call__(self, task: Any) -> Any:
        """Does a task."""
        raise NotImplementedError

    def open(self) -> None:
        """Opens everything, as the first task would."""
        for name in self._sources:
            self.data(name)
        _ = self.model

    @property
    def model(self) -> Model:
        """The export's, loaded when a task first asks for it."""
        with self._opening:
            if self._model is None:
                self._model = Model(self._export.path, self._export.digest, self._threads)
            return self._model

    def data(self, name: str) -> Data:
        """A data set, opened when a task first asks for it."""
        with self._opening:
            if name not in self._data:
                self._data[name] = self._sources[name].open(self._export.inputs)
            return self._data[name]


class KernelJob(Job):
    """Tiles of a kernel into a store."""

    def __init__(self, export: Export, sources: Mapping[str, Source], store: Path) -> None:
        """Of `data` with `data2`, or with itself if there is none."""
        super().__init__(export, sources)
        self._path = store

    def __call__(self, tile: Tile) -> Done:
        """Computes and writes a tile, and its mirror image if the kernel is symmetric."""
        start = time.monotonic()
        store = Store(self._path, "kernel")
        symmetric = "data2" not in self._sources
        first = self.data("data").read(tile.rows.start, tile.rows.stop)
        if symmetric and tile.row == tile.column:
            kernel = self._symmetric(first)
        else:
            second = self.data("data" if symmetric else "data2").read(tile.columns.start, tile.columns.stop)
            kernel = self._pairs(first, second)
        written = kernel.nbytes
        if symmetric and tile.row != tile.column:  # first, since the other one tells that the tile is done
            store.write((tile.columns, tile.rows), np.transpose(kernel, self._export.manifest["kernel"]["swap"]))
            written *= 2
        store.write((tile.rows, tile.columns), kernel)
        return Done(_here(), time.monotonic() - start, written)

    def _symmetric(self, rows: Rows) -> np.ndarray:
        if "ntk_symmetric" not in self._export.signatures:
            return self._pairs(rows, rows)
        return self.model.call("ntk_symmetric", _side("x", rows))["ntk"]

    def _pairs(self, first: Rows, second: Rows) -> np.ndarray:
        return self.model.call("ntk", _side("x1", first) | _side("x2", second))["ntk"]


class RowsJob(Job):
    """Rows of a signature's output into a store."""

    def __init__(self, export: Export, sources: Mapping[str, Source], store: Path, signature: str, output: str) -> None:
        """Of `data`; the output's name is the array's."""
        super().__init__(export, sources)
        self._path, self._signature, self._output = store, signature, output

    def __call__(self, rows: slice) -> Done:
        """Computes and writes those rows."""
        start = time.monotonic()
        inputs = _side("x", self.data("data").read(rows.start, rows.stop))
        values = self.model.call(self._signature, inputs)[self._output]
        Store(self._path, self._output).write((rows,), values)
        return Done(_here(), time.monotonic() - start, values.nbytes)


def run(job: str, task: Any) -> Any:
    """A task of a job, on a worker."""
    return _job(job)(task)


def open_job(job: str) -> None:
    """Everything that a job needs, on a worker."""
    _job(job).open()


def _job(name: str) -> Job:
    job = get_worker().plugins[name]
    assert isinstance(job, Job)
    return job


def _side(side: str, rows: Rows) -> dict[str, np.ndarray]:
    return {f"{side}{suffix}": array for suffix, array in rows.inputs.items()}


def _here() -> str:
    return str(get_worker().address)
