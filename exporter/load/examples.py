"""Reads a file of real inputs: arrays by name."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path

import numpy as np

from exporter.errors import ExportError

_KEY = "export.examples"


def read_examples(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, or of a .zarr group where the package zarr is installed, by name.

    Raises:
      ExportError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".zarr": _read_zarr}
    if path.suffix not in readers:
        raise ExportError(f"{_KEY}: expected a .npz or .zarr file with arrays by input name, received {str(path)!r}.")
    if not path.exists():
        raise ExportError(f"{_KEY}: expected the file {str(path)!r}, found none; correct the path.")
    return readers[path.suffix](path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file.items())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"{_KEY}: expected {str(path)!r} to hold arrays of numbers, str or bytes, written by numpy.savez (not of "
            f"Python objects), received: {error}."
        ) from error


def _read_zarr(path: Path) -> dict[str, np.ndarray]:
    try:
        zarr = importlib.import_module("zarr")
    except ImportError as error:
        raise ExportError(
            f"{_KEY}: expected the package zarr to read {str(path)!r}, found none; pip install zarr, or save the "
            "arrays by numpy.savez as .npz."
        ) from error
    try:
        return {name: np.asarray(array[:]) for name, array in zarr.open_group(str(path), mode="r").arrays()}
    except Exception as error:  # of any of zarr's stores and codecs
        raise ExportError(f"{_KEY}: expected {str(path)!r} to be a Zarr group of arrays, received: {error}.") from error
