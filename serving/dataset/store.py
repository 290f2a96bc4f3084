"""What a job writes: a Zarr group of whole chunks, with what they are of in its attributes.

A tile is one chunk, or some each way where it is large. Chunks are not compressed, so that a whole one is told by its
size; their checksums are compared whenever they are read. Zarr writes each under another name and renames it, so a
chunk that is there is whole unless the machine went down.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from serving.dataset.errors import DatasetError

ATTRIBUTE = "ntk_dataset"
_TILE = "tile"  # attribute of the main array
_CHECKSUM = 4  # bytes of a chunk
_PLAIN_CHUNK = 1 << 20  # bytes, of id and y


class Store:
    """The group's main array, `kernel` or `features`, by chunks."""

    def __init__(self, path: Path, name: str) -> None:
        """Opens a group that is there."""
        self.path, self._name = path, name
        with zarr.config.set({"array.write_empty_chunks": True}):  # or a tile of zeros would never be there
            array: Any = zarr.open_group(str(path), mode="r+")[name]
        self._array, self._chunk = array, tuple(array.chunks)
        self._chunk_bytes = int(np.prod(self._chunk)) * array.dtype.itemsize + _CHECKSUM

    def has(self, rows: Sequence[slice]) -> bool:
        """Whether all chunks of a tile are there and whole; `rows` are its examples, along each of their axes."""
        zeros = (0,) * (len(self._chunk) - len(rows))
        files = (self.path / self._name / "c" / "/".join(map(str, (*k, *zeros))) for k in self._chunks(rows))
        try:
            return all(file.stat().st_size == self._chunk_bytes for file in files)
        except FileNotFoundError:
            return False

    def write(self, rows: Sequence[slice], values: np.ndarray) -> None:
        """Writes a tile, one chunk after the other, each of which Zarr copies."""
        for place in self._chunks(rows):
            there, here = [], []
            for k, size, r in zip(place, self._chunk, rows, strict=False):
                start, stop = max(r.start, k * size), min(r.stop, (k + 1) * size)
                there.append(slice(start, stop))
                here.append(slice(start - r.start, stop - r.start))
            self._array[tuple(there)] = values[tuple(here)]

    def _chunks(self, rows: Sequence[slice]) -> Iterator[tuple[int, ...]]:
        """The places of a tile's chunks along the axes of examples."""
        sizes = zip(rows, self._chunk, strict=False)
        return itertools.product(*(range(r.start // size, math.ceil(r.stop / size)) for r, size in sizes))


@contextlib.contextmanager
def open_store(
    path: Path,
    name: str,
    identity: Mapping[str, Any],
    shape: Sequence[int],
    dtype: str,
    chunk: Sequence[int],
    tile: Sequence[int],
    plain: Mapping[str, np.ndarray],
) -> Iterator[Store]:
    """The store of a job, which is the only one to write it meanwhile; made if it is not there.

    Args:
      path: OUT.zarr.
      name: of the main array.
      identity: what it is of; a store of anything else is refused.
      shape, dtype, chunk: of the main array, if it is made.
      tile: examples of a tile along their axes, for a later job to go on with.
      plain: other arrays of the group, if it is made.

    Raises:
      DatasetError: the store is of something else, or another job writes it, or it cannot be made.
    """
    path = Path(os.path.abspath(path))
    if not path.parent.is_dir():
        raise DatasetError(f"Expected a directory {str(path.parent)!r} to write {path.name} into, found none.")
    try:
        if not path.exists():
            _make(path, name, identity, shape, dtype, chunk, tile, plain)
        with _locked(path):
            _check(path, name, identity)
            for left_over in (path / name).rglob("*.partial"):
                left_over.unlink(missing_ok=True)
            yield Store(path, name)
    except OSError as error:
        raise disk_error(path, error) from error


def check_store(path: Path, name: str, identity: Mapping[str, Any]) -> None:
    """Raises a DatasetError if there is a store, and it is of something else."""
    if path.exists():
        _check(path, name, identity)


def read_identity(path: Path) -> dict[str, Any] | None:
    """What a store is of; None if it is none of ours."""
    try:
        identity: Any = zarr.open_group(str(path), mode="r").attrs[ATTRIBUTE]
        return dict(identity)
    except Exception:  # whatever it is
        return None


def layout_of(path: Path, name: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Examples of a chunk and of a tile of the main array along their axes, if the store is there."""
    try:
        array: Any = zarr.open_group(str(path), mode="r")[name]
        tile = tuple(array.attrs.get(_TILE, array.chunks))  # one that was written before tiles had several has none
        return tuple(array.chunks)[: len(tile)], tile
    except Exception:
        return None


def disk_error(path: Path, error: OSError) -> DatasetError:
    """An error of writing in words."""
    return DatasetError(
        f"Writing {path} failed: {error.strerror or error}. What is written stays: free disk space, or correct the "
        "permissions, and give the same command again."
    )


def _make(
    path: Path,
    name: str,
    identity: Mapping[str, Any],
    shape: Sequence[int],
    dtype: str,
    chunk: Sequence[int],
    tile: Sequence[int],
    plain: Mapping[str, np.ndarray],
) -> None:
    """Makes the group under another name, and renames it: nobody sees a part of it."""
    making = path.with_name(f".{path.name}.ntk-dataset")
    making.mkdir(exist_ok=True)
    with _locked(making):
        if path.exists():
            return
        for left_over in making.iterdir():  # of a job that was killed
            shutil.rmtree(left_over)
        try:
            group = zarr.create_group(str(making / "group"), attributes={ATTRIBUTE: dict(identity)})
            attributes: dict[str, Any] = {_TILE: list(tile)}
            group.create_array(
                name, shape=shape, dtype=dtype, chunks=tuple(chunk), compressors=[Crc32cCodec()], attributes=attributes
            )
            for key, values in plain.items():
                _write_plain(group, key, values)
            (making / "group").rename(path)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _write_plain(group: Any, key: str, values: np.ndarray) -> None:
    texts = values.dtype.hasobject
    row = max(1, values[:1].nbytes)
    chunk = (min(max(1, len(values)), max(1, _PLAIN_CHUNK // row)), *values.shape[1:])
    array = group.create_array(key, shape=values.shape, dtype="string" if texts else values.dtype, chunks=chunk)
    array[:] = values


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"{directory} is being written by another ntk-dataset. Wait for it to end.") from None
        yield
    finally:
        os.close(descriptor)


def _check(path: Path, name: str, identity: Mapping[str, Any]) -> None:
    found = read_identity(path)
    if found is None:
        raise DatasetError(
            f"Expected {path} not to exist, or to be what ntk-dataset wrote; found something else. Choose another "
            "--output, or remove it."
        )
    differ = [key for key in {**identity, **found} if identity.get(key) != found.get(key)]
    if differ:
        parts = [f"{key}: {_short(found.get(key))} there, {_short(identity.get(key))} now" for key in differ]
        raise DatasetError(f"{path} is of something else ({'; '.join(parts)}). Choose another --output, or remove it.")
    if layout_of(path, name) is None:
        raise DatasetError(f"{path} is damaged: it has no array {name!r}. Remove it.")


def _short(value: Any) -> str:
    """Digests as their beginnings."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} {_short(v)}" for key, v in value.items()) + "}"
    text = str(value)
    return text[:12] if len(text) == 64 else text
