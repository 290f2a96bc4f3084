"""TFRecord files of tf.train.Example: any rows of them, by an index of where each record begins."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.dataset.errors import DatasetError

Spec = tuple[Sequence[int | None], np.dtype]  # shape of a row, None for any size; object is texts

_HEADER, _FOOTER = 12, 4  # bytes: length and its checksum, the data's checksum


class RecordColumns:
    """The features of all records; a record's numbers are brought to the shape and dtype of a row.

    A feature of bytes is a row in the machine's little-endian layout (numpy's `tobytes`), or texts.
    """

    def __init__(self, files: Sequence[str], specs: Mapping[str, Spec]) -> None:
        """Reads lengths of records, and the first record.

        Raises:
          DatasetError: the files are damaged or compressed, or have no records.
        """
        self._files, self._specs = tuple(files), specs
        self._offsets = [_offsets(file) for file in files]
        self._ends = list(itertools.accumulate(len(offsets) for offsets in self._offsets))
        self.rows = self._ends[-1]
        if not self.rows:
            raise DatasetError(f"Expected records in {files[0]!r}, received none.")
        self.names = tuple(sorted(self._record(0)))
        self._last: tuple[tuple[int, int], list[Any]] | None = None

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Those rows of a feature."""
        records = self._records(start, stop)
        rows = [self._row(name, records[k], start + k) for k in range(len(records))]
        shape, dtype = self._spec(name, rows)
        if not rows:
            return np.zeros((0, *(size or 0 for size in shape)), dtype)
        if len({row.shape for row in rows}) > 1:
            raise DatasetError(f"{self._files[0]}: expected {name!r} of one shape in all records, received several.")
        return np.stack(rows)

    def _records(self, start: int, stop: int) -> list[Any]:
        """The features of those records; kept until others are asked for, since columns are read one by one."""
        if self._last is None or self._last[0] != (start, stop):
            self._last = (start, stop), [self._record(k) for k in range(start, stop)]
        return self._last[1]

    def _record(self, k: int) -> Any:
        import tensorflow as tf

        number = bisect.bisect_right(self._ends, k)
        offsets = self._offsets[number]
        place = k - (self._ends[number] - len(offsets))
        with open(self._files[number], "rb") as file:
            file.seek(offsets[place])
            length = int.from_bytes(file.read(8), "little")
            file.seek(_HEADER - 8, os.SEEK_CUR)
            content = file.read(length)
        try:
            features = tf.train.Example.FromString(content).features.feature
        except Exception as error:  # of protobuf
            raise DatasetError(
                f"{self._files[number]}: expected records of tf.train.Example, received others: {error}."
            ) from error
        return dict(features)

    def _spec(self, name: str, rows: Sequence[np.ndarray]) -> Spec:
        if name in self._specs:
            return self._specs[name]
        return (rows[0].shape, rows[0].dtype) if rows else ((), np.dtype(np.float32))

    def _row(self, name: str, features: Mapping[str, Any], k: int) -> np.ndarray:
        if name not in features:
            raise DatasetError(
                f"{self._files[0]}: expected {name!r} in every record, as in the first, received record {k:,} without."
            )
        feature = features[name]
        kind = feature.WhichOneof("kind") or "float_list"
        values = getattr(feature, kind).value
        shape, dtype = self._specs.get(name, (None, None))
        if kind == "bytes_list":
            if dtype is None or dtype.kind == "O":
                flat = np.empty(len(values), object)
                flat[:] = list(values)
            else:
                flat = np.frombuffer(b"".join(values), dtype.newbyteorder("<")).astype(dtype)
        else:
            flat = np.array(values, np.int64 if kind == "int64_list" else np.float32)
        if shape is None:
            return flat.reshape(()) if len(flat) == 1 else flat
        try:
            return flat.reshape([-1 if size is None else size for size in shape])
        except ValueError:
            raise DatasetError(
                f"{self._files[0]}: expected {name!r} of shape {tuple(shape)}, received {len(flat):,} values in record "
                f"{k:,}."
            ) from None


def _offsets(path: str) -> np.ndarray:
    """Where each record begins."""
    offsets = []
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        place = 0
        while place < size:
            file.seek(place)
            length = int.from_bytes(file.read(8), "little")
            if place + _HEADER + length + _FOOTER > size:
                raise DatasetError(
                    f"Expected {path!r} to hold whole records of tf.train.Example, uncompressed; received one at byte "
                    f"{place:,} that goes beyond the file's end."
                )
            offsets.append(place)
            place += _HEADER + length + _FOOTER
    return np.array(offsets, np.int64)
