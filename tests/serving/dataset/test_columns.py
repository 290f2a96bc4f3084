"""What --data names: arrays by name, any rows of them."""

import re

import numpy as np
import pytest
import tensorflow as tf
import zarr

from serving.dataset.columns import open_columns
from serving.dataset.errors import DatasetError

ROWS = 7
SPECS = {"x": ((2, 3), np.dtype(np.float32)), "words": ((), np.dtype(object))}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x = rng.random((ROWS, 2, 3), np.float32)
    return {"x": x, "y": np.arange(ROWS), "id": np.array([f"example {k}" for k in range(ROWS)])}


def feature(value):
    """A value as tf.train.Example has it."""
    if value.dtype.kind == "U":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode() for text in value.ravel()]))
    if value.dtype.kind == "i":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value.ravel()))
    return tf.train.Feature(float_list=tf.train.FloatList(value=value.ravel()))


def write_records(path, arrays, rows, as_bytes=()):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for k in rows:
            features = {name: feature(np.atleast_1d(array[k])) for name, array in arrays.items()}
            for name in as_bytes:
                features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[arrays[name][k].tobytes()]))
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


@pytest.fixture(params=["npz", "npz compressed", "zarr", "tfrecord", "tfrecord of bytes", "callable"])
def data(request, arrays, tmp_path, monkeypatch):
    """The same arrays in each of the kinds."""
    kind, path = request.param, tmp_path / "data"
    if kind.startswith("npz"):
        (np.savez_compressed if "compressed" in kind else np.savez)(path, **arrays)
        return f"{path}.npz"
    if kind == "zarr":
        group = zarr.create_group(f"{path}.zarr")
        for name, array in arrays.items():
            text = array.dtype.kind == "U"
            created = group.create_array(
                name, shape=array.shape, dtype="string" if text else array.dtype, chunks=(4, *array.shape[1:])
            )
            created[:] = array.astype(object) if text else array
        return f"{path}.zarr"
    if kind.startswith("tfrecord"):
        as_bytes = ["x"] if "bytes" in kind else []
        for part, rows in enumerate(([0, 1, 2], [], [3, 4, 5, 6])):
            write_records(f"{path}-{part}.tfrecord", arrays, rows, as_bytes)
        return f"{path}-*.tfrecord"
    np.savez(path, **arrays)
    (tmp_path / "my_arrays.py").write_text(
        f"import numpy as np\n\ndef all(): return dict(np.load({f'{path}.npz'!r}))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_arrays", raising=False)
    return "my_arrays:all"


def test_any_rows_of_any_kind(data, arrays):
    columns = open_columns(data, SPECS)
    assert (set(columns.names), columns.rows) == (set(arrays), ROWS)
    for start, stop in ((0, ROWS), (2, 5), (6, 7), (3, 3)):
        for name, array in arrays.items():
            part = columns.read(name, start, stop)
            assert len(part) == stop - start
            if array.dtype.kind == "U":
                part = [text.decode() if isinstance(text, bytes) else str(text) for text in part]
            assert np.array_equal(part, array[start:stop]), name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing.npz", "Expected the file 'nothing.npz', found none"),
        ("nothing-*.tfrecord", "received 'nothing-*.tfrecord', which names no file"),
        ("no_module:all", "importing no_module failed: ModuleNotFoundError"),
        ("json:lods", "json has no 'lods'; did you mean 'loads'?"),
        ("os:getcwd", "expected a dict of arrays by name, received str"),
        ("broken.npz", "to hold arrays written by numpy.savez"),
        ("rows.npz", "expected as many rows of every array, received 2 of 'x', 3 of 'y'"),
        ("scalar.npz", "received 'x' without axes"),
        ("broken.tfrecord", "one at byte 0 that goes beyond the file's end"),
        ("shapes.tfrecord", "expected 'x' of shape (2, 3), received 5 values in record 0"),
        ("lacking.tfrecord", "expected 'y' in every record, as in the first, received record 1 without"),
    ],
)
def test_what_is_wrong_is_said(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    np.savez("rows", x=np.zeros(2), y=np.zeros(3))
    np.savez("scalar", x=np.float32(1))
    (tmp_path / "broken.tfrecord").write_bytes(b"\xff" * 20)
    write_records("shapes.tfrecord", {"x": np.zeros((1, 5), np.float32)}, [0])
    write_records("lacking.tfrecord", {"x": np.zeros((1, 2, 3), np.float32), "y": np.zeros(1)}, [0])
    with open("lacking.tfrecord", "ab") as file:
        write_records("more.tfrecord", {"x": np.zeros((1, 2, 3), np.float32)}, [0])
        file.write((tmp_path / "more.tfrecord").read_bytes())
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_all(data)


def read_all(data):
    columns = open_columns(data, SPECS)
    return [columns.read(name, 0, columns.rows) for name in columns.names]
