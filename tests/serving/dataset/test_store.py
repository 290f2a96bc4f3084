"""What a job writes, and what it goes on with."""

import numpy as np
import pytest
import zarr

from serving.dataset.errors import DatasetError
from serving.dataset.store import open_store

IDENTITY = {"format": 1, "kind": "kernel", "export": "a" * 64, "data": "b" * 64, "axes": {"trace": [1], "kept": []}}
PLAIN = {"id": np.array(["one", "two"], object), "y": np.arange(2)}


def opened(path, **changed):
    return open_store(path, "kernel", {**IDENTITY, **changed}, (5, 5), "float32", (2, 2), (2, 2), PLAIN)


def places(row, column):
    """The examples of a chunk."""
    return slice(2 * row, min(5, 2 * row + 2)), slice(2 * column, min(5, 2 * column + 2))


def test_chunks_are_there_when_they_were_written(tmp_path):
    path = tmp_path / "k.zarr"
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    with opened(path) as store:
        assert not store.has(places(0, 1))
        store.write((slice(0, 2), slice(2, 4)), values)
        store.write((slice(4, 5), slice(4, 5)), np.zeros((1, 1), np.float32))  # at the edge, and all zeros
    with opened(path) as store:
        assert store.has(places(0, 1))
        assert store.has(places(2, 2))
        assert not store.has(places(1, 0))
    group = zarr.open_group(str(path), mode="r")
    np.testing.assert_array_equal(group["kernel"][:2, 2:4], values)
    assert group["id"][:].tolist() == ["one", "two"]
    assert group["y"][:].tolist() == [0, 1]


def test_a_tile_of_several_chunks(tmp_path):
    path = tmp_path / "k.zarr"
    tile = slice(0, 4), slice(2, 5)
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with opened(path) as store:
        store.write(tile, values)
        assert store.has(tile)
        assert not store.has((slice(0, 4), slice(0, 4)))
    np.testing.assert_array_equal(zarr.open_group(str(path), mode="r")["kernel"][tile], values)
    (path / "kernel/c/1/2").unlink()
    with opened(path) as store:
        assert not store.has(tile)


def test_part_of_a_chunk_is_none(tmp_path):
    path = tmp_path / "k.zarr"
    with opened(path) as store:
        store.write((slice(0, 2), slice(0, 2)), np.ones((2, 2), np.float32))
    chunk = path / "kernel/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    (path / "kernel/c/0/1.123.partial").write_bytes(b"of a job that was killed")
    with opened(path) as store:
        assert not store.has(places(0, 0))
    assert not list(path.rglob("*.partial"))


def test_a_damaged_chunk_is_not_read(tmp_path):
    path = tmp_path / "k.zarr"
    with opened(path) as store:
        store.write((slice(0, 2), slice(0, 2)), np.ones((2, 2), np.float32))
    chunk = path / "kernel/c/0/0"
    chunk.write_bytes(b"\x01" + chunk.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"[Cc]hecksum"):
        zarr.open_group(str(path), mode="r")["kernel"][:2, :2]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"export": "c" * 64}, "export: aaaaaaaaaaaa there, cccccccccccc now"),
        ({"data": "c" * 64}, "data: bbbbbbbbbbbb there"),
        ({"axes": {"trace": [], "kept": [3, 3]}}, "axes: {trace [1], kept []} there, {trace [], kept [3, 3]} now"),
        ({"data2": "c" * 64}, "data2: None there"),
    ],
)
def test_another_job_is_refused_by_what_differs(tmp_path, changed, named):
    with opened(tmp_path / "k.zarr"):
        pass
    with pytest.raises(DatasetError) as caught, opened(tmp_path / "k.zarr", **changed):
        pass
    assert named in str(caught.value)
    assert str(caught.value).count(" there") == 1


def test_what_something_else_wrote_stays(tmp_path):
    path = tmp_path / "k.zarr"
    zarr.create_group(str(path)).create_array("kernel", shape=(5, 5), dtype="f4")
    before = sorted(path.rglob("*"))
    with pytest.raises(DatasetError, match="found something else"), opened(path):
        pass
    assert sorted(path.rglob("*")) == before


def test_two_jobs_do_not_write_one_store(tmp_path):
    path = tmp_path / "k.zarr"
    with opened(path), pytest.raises(DatasetError, match="is being written by another ntk-dataset"), opened(path):
        pass


def test_a_store_is_made_whole_or_not_at_all(tmp_path):
    path = tmp_path / "k.zarr"
    making = tmp_path / ".k.zarr.ntk-dataset"
    (making / "group/kernel").mkdir(parents=True)  # by a job that was killed
    with opened(path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.zarr"]
    with pytest.raises(DatasetError, match="Expected a directory"), opened(tmp_path / "none/k.zarr"):
        pass
