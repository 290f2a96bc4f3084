"""What users have: arrays by name, of which any rows can be read. It alone knows files and modules."""

from __future__ import annotations

import glob
import importlib
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serving.dataset.errors import DatasetError
from serving.dataset.records import RecordColumns, Spec
from serving.shared.suggest import did_you_mean

_KINDS = "a .npz file, a .zarr group, TFRecord files (*.tfrecord), or package.module:callable"


class Columns(Protocol):
    """Arrays of the same number of rows.

    Attributes:
      names: of the arrays.
      rows: their number.
    """

    names: tuple[str, ...]
    rows: int

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Those rows of an array."""


def open_columns(data: str, records: Mapping[str, Spec]) -> Columns:
    """The arrays that DATA names, unread.

    Args:
      data: what users give as --data.
      records: shapes and dtypes of what TFRecord files may hold, which do not say them themselves.

    Raises:
      DatasetError: there is nothing of this name, or it is damaged, or the arrays have other numbers of rows.
    """
    if data.endswith(".npz"):
        return _Arrays(data, _npz(_existing(data)))
    if data.rstrip("/").endswith(".zarr"):
        return _Arrays(data, _zarr(_existing(data)))
    files = sorted(glob.glob(os.path.expanduser(data)))
    if files and all(os.path.isfile(file) for file in files):
        return RecordColumns(files, records)
    module, _, attribute = data.partition(":")
    if attribute and "/" not in data:
        return _Arrays(data, _called(module, attribute))
    raise DatasetError(f"Expected {_KINDS}, received {data!r}, which names no file. Correct the path.")


class _Arrays:
    """Anything that has a shape, a dtype and slices of rows."""

    def __init__(self, data: str, arrays: Mapping[str, Any]) -> None:
        scalars = [name for name, array in arrays.items() if not array.shape]
        if scalars or not arrays:
            received = f"{scalars[0]!r} without axes" if scalars else "none"
            raise DatasetError(f"{data}: expected arrays with their examples on axis 0, received {received}.")
        counts = {name: array.shape[0] for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            received = ", ".join(f"{count:,} of {name!r}" for name, count in counts.items())
            raise DatasetError(f"{data}: expected as many rows of every array, received {received}.")
        self._arrays, self.names, self.rows = arrays, tuple(arrays), next(iter(counts.values()))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._arrays[name][start:stop])


def _existing(data: str) -> Path:
    path = Path(data).expanduser()
    if not path.exists():
        raise DatasetError(f"Expected the file {data!r}, found none. Correct the path.")
    return path


def _npz(path: Path) -> dict[str, Any]:
    """The arrays of the file; mapped into memory where they are not compressed, so that only what is read takes any."""
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _mapped(path, archive, info) or file[name] for name, info in members.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"Expected {str(path)!r} to hold arrays written by numpy.savez (not of Python objects), received: {error}."
        ) from error


class _Mapped:
    """An array of a file, mapped anew for each reading: the pages of a standing one would count as memory."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._path, self._offset, self.shape, self.dtype = path, offset, shape, dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.array(np.memmap(self._path, self.dtype, "r", self._offset, self.shape)[rows])


def _mapped(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Mapped | None:
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            return None
        shape, fortran, dtype = read_header[version](member)
        header = member.tell()
    if fortran or dtype.hasobject or 0 in shape or not shape:
        return None
    with path.open("rb") as file:  # the local header's fields of variable length differ from the directory's
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
    return _Mapped(path, info.header_offset + 30 + int(name) + int(extra) + header, shape, dtype)


def _zarr(path: Path) -> dict[str, Any]:
    import zarr

    try:
        return dict(zarr.open_group(str(path), mode="r").arrays())
    except Exception as error:  # of any of zarr's stores and codecs
        raise DatasetError(f"Expected {str(path)!r} to be a Zarr group of arrays, received: {error}.") from error


def _called(module: str, attribute: str) -> dict[str, Any]:
    """What a function of the user returns; the working directory is where modules are looked for first."""
    name = f"{module}:{attribute}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module)
    except Exception as error:
        raise DatasetError(
            f"Expected {_KINDS}, received {name!r}: importing {module} failed: {_text(error)}."
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            hint = did_you_mean(part, [known for known in dir(target) if not known.startswith("_")])
            raise DatasetError(f"{name}: {module} has no {part!r}{hint}.")
        target = getattr(target, part)
    try:
        arrays = target()
    except Exception as error:
        raise DatasetError(f"{name} failed: {_text(error)}.") from error
    if not isinstance(arrays, Mapping):
        raise DatasetError(f"{name}: expected a dict of arrays by name, received {type(arrays).__name__}.")
    return {str(key): value if _sliceable(value) else np.asarray(value) for key, value in arrays.items()}


def _sliceable(value: object) -> bool:
    """Whether it can be read in parts as it is: a NumPy array, a memory map, a Zarr or HDF5 array."""
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__")) and not _is_tensor(value)


def _is_tensor(value: object) -> bool:
    return type(value).__module__.startswith("tensorflow")


def _text(error: BaseException) -> str:
    lines: Sequence[str] = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
