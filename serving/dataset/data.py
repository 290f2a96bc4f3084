"""A data set as an export takes it: inputs as its signatures name them, with `y` and `id` if there are any."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from serving.dataset.columns import Columns, open_columns
from serving.dataset.errors import DatasetError
from serving.shared.suggest import did_you_mean

TARGETS, IDS = "y", "id"
_READ_BYTES = 64 << 20  # of a data set that is read once from end to end


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some examples: `inputs` as signatures take them, by what follows the x of their names; y, id None if none."""

    inputs: dict[str, np.ndarray]
    y: np.ndarray | None
    id: np.ndarray | None


class Data:
    """A data set, of which any rows can be read.

    Attributes:
      name: as the user gave it.
      rows: the number of examples.
      has_y, has_id: whether there are targets and names of the examples.
    """

    def __init__(self, name: str, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Opens it, and compares its names with the model's inputs.

        Args:
          name: DATA as users give it.
          inputs: of the export, as its manifest has them.

        Raises:
          DatasetError: it cannot be read, or is not of this model.
        """
        specs = {
            key: (shape[1:], np.dtype(object if dtype == "string" else dtype))
            for entry in inputs
            for key in _names(entry, inputs)
            for shape, dtype in [(entry["shape"], entry["dtype"])]
        }
        columns = open_columns(name, specs)
        self._columns: Columns = columns
        self.name, self.rows = name, columns.rows
        self._inputs = {entry["input"].removeprefix("x"): _chosen(name, entry, inputs, columns) for entry in inputs}
        self._specs = {suffix: specs[column] for suffix, column in self._inputs.items()}
        extra = [n for n in columns.names if n not in (TARGETS, IDS, *self._inputs.values())]
        if extra:
            known = [*(next(iter(_names(entry, inputs))) for entry in inputs), TARGETS, IDS]
            raise DatasetError(
                f"{name}: expected {', '.join(known)}, received {extra[0]!r} too{did_you_mean(extra[0], known)}. "
                "Remove or rename it."
            )
        if not self.rows:
            raise DatasetError(f"{name}: expected examples, received none.")
        self.has_y, self.has_id = TARGETS in columns.names, IDS in columns.names

    def read(self, start: int, stop: int) -> Rows:
        """Examples start to stop, as the model's inputs have them.

        Raises:
          DatasetError: their shapes or dtypes are not those of the model.
        """
        inputs = {
            suffix: self._converted(column, self._columns.read(column, start, stop), *self._specs[suffix])
            for suffix, column in self._inputs.items()
        }
        return Rows(inputs, self._targets(start, stop), self._ids(start, stop))

    def fingerprint(self) -> str:
        """Digest of the number of examples, the first and the last: tells copies of other data apart, in no time."""
        digest = hashlib.sha256(str(self.rows).encode())
        for k in (0, self.rows - 1):
            _update(digest, self.read(k, k + 1))
        return digest.hexdigest()

    def check(self, advance: Callable[[int], None] = lambda rows: None) -> str:
        """Reads all of it; returns the digest of its content.

        Args:
          advance: told how many examples were read.

        Raises:
          DatasetError: values are not finite, or not as the model has them.
        """
        digest = hashlib.sha256()
        for start, stop in self._parts():
            rows = self.read(start, stop)
            for name, array in self._numbers(rows):
                _check_finite(self.name, name, array, start)
            _update(digest, rows)
            advance(stop - start)
        return digest.hexdigest()

    def ids(self) -> np.ndarray:
        """Of all examples: their `id`, or else their numbers."""
        return _all(self._ids, self._parts()) if self.has_id else np.arange(self.rows)

    def targets(self) -> np.ndarray | None:
        """Of all examples, if there are any."""
        return _all(self._targets, self._parts()) if self.has_y else None

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Ranges of examples, each of so many bytes that it may be in memory, whatever is asked for later."""
        bytes_of_row = sum(
            dtype.itemsize * math.prod(size or 1 for size in shape) for shape, dtype in self._specs.values()
        )
        step = max(1, _READ_BYTES // max(1, bytes_of_row))
        return ((start, min(self.rows, start + step)) for start in range(0, self.rows, step))

    def _numbers(self, rows: Rows) -> Iterator[tuple[str, np.ndarray]]:
        yield from ((self._inputs[suffix], array) for suffix, array in rows.inputs.items())
        if rows.y is not None:
            yield TARGETS, rows.y

    def _converted(self, column: str, array: np.ndarray, shape: Sequence[int | None], dtype: np.dtype) -> np.ndarray:
        received = f"received {array.dtype} {('n', *array.shape[1:])}".replace("'", "")
        expected = f"{self.name}: expected {column!r} of {'texts' if dtype.hasobject else dtype} "
        expected += f"{('n', *('any' if size is None else size for size in shape))}".replace("'", "")
        fits = array.ndim == len(shape) + 1 and all(e in (None, s) for e, s in zip(shape, array.shape[1:], strict=True))
        if not fits:
            raise DatasetError(f"{expected}, {received}.")
        if dtype.hasobject:
            if array.dtype.kind not in "OSUT":
                raise DatasetError(f"{expected}, {received}.")
            return array.astype(object)
        if array.dtype == dtype:
            return np.ascontiguousarray(array)
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise DatasetError(f"{expected}, {received}.")
        converted = array.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(converted, array):
            raise DatasetError(f"{expected}, {received} with values that it cannot hold.")
        return converted

    def _targets(self, start: int, stop: int) -> np.ndarray | None:
        if not self.has_y:
            return None
        y = self._columns.read(TARGETS, start, stop)
        if y.dtype.kind not in "biuf":
            raise DatasetError(f"{self.name}: expected {TARGETS!r} of numbers, received {y.dtype}.")
        return y

    def _ids(self, start: int, stop: int) -> np.ndarray | None:
        if not self.has_id:
            return None
        ids = self._columns.read(IDS, start, stop)
        if ids.ndim != 1 or ids.dtype.kind not in "iuOSUT":
            received = f"{ids.dtype} with {ids.ndim} axes"
            raise DatasetError(
                f"{self.name}: expected {IDS!r} of integers or texts with one axis, received {received}."
            )
        if ids.dtype.kind in "iu":
            return ids.astype(np.int64)
        return np.array([i.decode() if isinstance(i, bytes) else str(i) for i in ids], object)


def _names(entry: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Under which names users may give an input: its own; of a model with one input it is x first."""
    return ("x", entry["name"]) if len(inputs) == 1 else (entry["name"],)


def _chosen(data: str, entry: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    names = _names(entry, inputs)
    for name in names:
        if name in columns.names:
            return name
    hint = did_you_mean(names[0], columns.names)
    raise DatasetError(
        f"{data}: expected the model's input {names[0]!r}, received {', '.join(columns.names)}{hint}. Rename it."
    )


def _check_finite(data: str, name: str, array: np.ndarray, start: int) -> None:
    if array.dtype.kind != "f" and "float" not in array.dtype.name:
        return
    finite = np.isfinite(array.astype(np.float32, copy=False) if array.dtype.kind == "V" else array)
    if not finite.all():
        row = int(np.argwhere(~finite.reshape(len(array), -1).all(axis=1))[0, 0])
        value = array[row][~finite[row]].ravel()[0]
        raise DatasetError(f"{data}: expected finite numbers, received {value} in {name!r}, example {start + row:,}.")


def _update(digest: Any, rows: Rows) -> None:
    for name, array in (*sorted(rows.inputs.items()), (TARGETS, rows.y), (IDS, rows.id)):
        if array is None:
            continue
        digest.update(f"{name} {array.dtype.name} {array.shape[1:]}".encode())
        if array.dtype.hasobject:
            for text in array.ravel():
                content = text if isinstance(text, bytes) else str(text).encode()
                digest.update(len(content).to_bytes(8, "little") + content)
        else:
            digest.update(np.ascontiguousarray(array).data)


def _all(read: Callable[[int, int], np.ndarray | None], parts: Iterator[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([array for start, stop in parts if (array := read(start, stop)) is not None])
