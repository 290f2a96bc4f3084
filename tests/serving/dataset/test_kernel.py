"""Kernels of whole data sets, by workers in this process; those of processes are in tests/end_to_end."""

import contextlib
import errno
import io

import distributed
import numpy as np
import pytest
import zarr

from serving.dataset import engine, jobs, kernel
from serving.dataset.errors import DatasetError
from serving.dataset.export import find_export
from serving.dataset.kernel import write_kernel
from serving.dataset.prepared import prepare
from serving.dataset.tiles import Grid

SIDE = 5


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    def grid(manifest, n1, n2, *, symmetric, memory, workers):
        return Grid((n1, n2), (SIDE, SIDE), symmetric)

    monkeypatch.setattr(kernel, "choose_grid", grid)


@pytest.fixture
def write(exported, cluster, tmp_path):
    """write(name, n1, n2) writes the kernel of n1 examples, with n2 others or themselves; returns group and summary."""

    def run(name, n1, n2=None, output="k.zarr", seed=0):
        export = find_export(exported(name).path.parent, "ntk")
        prepared = []
        for side, n in enumerate((n1, n2)):
            if n is not None:
                names = ["x"] if len(export.inputs) == 1 else [entry["name"] for entry in export.inputs]
                inputs = exported(name).inputs(n, seed + side)
                path = tmp_path / f"{name}-{seed}-{side}-{n}.npz"
                np.savez(path, y=np.arange(n), **dict(zip(names, inputs, strict=True)))
                prepared.append(prepare(str(path), export, lambda *_: None))
        path = tmp_path / output
        with contextlib.redirect_stderr(io.StringIO()):
            summary = write_kernel(
                export, prepared[0], *prepared[1:] or [None], path, cluster, 2 << 30, lambda *_: None
            )
        return zarr.open_group(str(path), mode="r"), summary

    return run


@pytest.mark.parametrize("name", ["two_inputs", "all_axes"])
def test_symmetric(write, exported, name):
    n = 12
    group, summary = write(name, n)
    export = exported(name)
    x = export.inputs(n)
    expected = np.asarray(export.loaded.ntk(export.argument(x), export.argument(x)))
    np.testing.assert_allclose(group["kernel"][:], expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))
    assert (summary.tasks, summary.pairs) == (6, n * (n + 1) // 2)
    assert group["y"][:].tolist() == group["id"][:].tolist() == list(range(n))


def test_of_two_data_sets(write, exported):
    export = exported("two_inputs")
    group, summary = write("two_inputs", 7, 11)
    expected = np.asarray(export.loaded.ntk(export.argument(export.inputs(7)), export.argument(export.inputs(11, 1))))
    np.testing.assert_allclose(group["kernel"][:], expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))
    assert (summary.tasks, summary.pairs) == (6, 77)
    assert group["id2"][:].tolist() == list(range(11))


def test_only_what_is_missing_is_computed(write):
    whole, _ = write("two_inputs", 12, output="whole.zarr")
    group, _ = write("two_inputs", 12)
    root = group.store.root
    (root / "kernel/c/0/1").unlink()  # one of two that are one tile
    (root / "kernel/c/2/2").write_bytes(b"part")
    group, summary = write("two_inputs", 12)
    assert summary.tasks == 2
    np.testing.assert_array_equal(group["kernel"][:], whole["kernel"][:])
    assert write("two_inputs", 12)[1].tasks == 0


def test_tiles_of_several_chunks(write, monkeypatch):
    """They stay what they are, whatever a later command would choose."""
    whole, _ = write("two_inputs", 12, output="whole.zarr")
    monkeypatch.setattr(kernel, "choose_grid", lambda *_, **__: Grid((12, 12), (3, 3), True, (2, 2)))
    group, summary = write("two_inputs", 12)
    assert (summary.tasks, group["kernel"].chunks) == (3, (3, 3))
    np.testing.assert_allclose(group["kernel"][:], whole["kernel"][:], rtol=0, atol=1e-5 * np.max(whole["kernel"][:]))
    before = group["kernel"][:]
    (group.store.root / "kernel/c/3/1").unlink()
    monkeypatch.setattr(kernel, "choose_grid", lambda *_, **__: Grid((12, 12), (12, 12), True))
    group, summary = write("two_inputs", 12)
    assert summary.tasks == 1
    np.testing.assert_array_equal(group["kernel"][:], before)


def test_other_data_is_refused(write):
    write("two_inputs", 12)
    with pytest.raises(DatasetError, match=r"is of something else \(data: .* there, .* now\)"):
        write("two_inputs", 12, seed=5)


def test_a_tile_is_tried_three_times(write, monkeypatch):
    compute, tries = jobs.KernelJob.__call__, {}

    def failing(of):
        def call(self, tile):
            place = tile.row, tile.column
            tries[place] = tries.get(place, 0) + 1
            if place == (0, 2) and tries[place] <= of:
                raise RuntimeError("of the worker")
            return compute(self, tile)

        return call

    monkeypatch.setattr(jobs.KernelJob, "__call__", failing(of=3))
    with pytest.raises(DatasetError, match=r"row=0, column=2.* failed 3 times: RuntimeError: of the worker"):
        write("two_inputs", 12)
    assert tries[0, 2] == 3
    tries.clear()
    monkeypatch.setattr(jobs.KernelJob, "__call__", failing(of=2))
    assert 1 <= write("two_inputs", 12)[1].tasks <= 6
    assert tries[0, 2] == 3


def test_a_full_disk_is_said_and_what_is_written_stays(write, monkeypatch):
    compute = jobs.KernelJob.__call__
    done = []

    def call(self, tile):
        if (tile.row, tile.column) == (2, 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(tile)
        return compute(self, tile)

    monkeypatch.setattr(jobs.KernelJob, "__call__", call)
    with pytest.raises(DatasetError, match=r"Writing .*k.zarr failed: No space left on device.* What is written stays"):
        write("two_inputs", 12)
    monkeypatch.setattr(jobs.KernelJob, "__call__", compute)
    assert 0 < write("two_inputs", 12)[1].tasks <= 7 - len(done)  # one was under way


def test_few_tasks_are_known_at_a_time(cluster, exported):
    """The scheduler's memory is that of a few tasks, whatever their number."""
    seen, most = [0], [0]
    export = find_export(exported("two_inputs").path.parent, "ntk")

    def tasks():
        for k in range(40):
            seen[0] += 1
            yield k

    def received(task, result):
        seen[0] -= 1
        most[0] = max(most[0], seen[0])

    with engine.connected(cluster) as client:
        job = Doubling(export, {})
        with engine.registered(client, job):
            engine.run(client, job, tasks(), received)
    assert seen[0] == 0
    assert most[0] <= 2


class Doubling(jobs.Job):
    """A job without a model."""

    def __call__(self, task):
        return 2 * task


def test_workers_of_other_versions_are_refused(write, monkeypatch):
    monkeypatch.setattr(
        jobs.Job,
        "__getstate__",
        lambda self: {**self.__dict__, "_versions": {**self._versions, "tensorflow": "2.19.0"}},
    )
    with pytest.raises(DatasetError, match=r"has tensorflow .*, expected 2.19.0: .* Install the same versions"):
        write("two_inputs", 12)


def test_an_export_that_was_replaced_is_refused(write, monkeypatch):
    monkeypatch.setattr("serving.dataset.model.digest_of", lambda path: "another")
    with pytest.raises(DatasetError, match="is not the export that the job was started with"):
        write("two_inputs", 12)


def test_data_that_workers_see_otherwise_is_refused(write, monkeypatch):
    monkeypatch.setattr(jobs.Source, "__getstate__", lambda self: {**self.__dict__, "fingerprint": "another"})
    with pytest.raises(DatasetError, match="is not on every worker what it is where the job was started"):
        write("two_inputs", 12)


def test_exports_that_cannot_be_taken_in_parts_are_refused(exported):
    with pytest.raises(DatasetError, match="those of this export influence each other"):
        find_export(exported("coupled").path, "ntk")
    with pytest.raises(DatasetError, match="expected the signature 'forward', found ntk, ntk_symmetric, "):
        find_export(exported("all_axes").path, "forward")
    with pytest.raises(DatasetError, match="Expected an export in"):
        find_export(exported("all_axes").path / "assets", "ntk")


def test_no_scheduler():
    workers = engine.Workers("tcp://127.0.0.1:9", wait=0.5)
    message = r"Expected a Dask scheduler at tcp://127\.0\.0\.1:9, received none"
    with pytest.raises(DatasetError, match=message), engine.connected(workers):
        pass


def test_no_workers():
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        workers = engine.Workers(cluster.scheduler_address, wait=0.3)
        with pytest.raises(DatasetError, match=r"has no workers after 0\.3 s"), engine.connected(workers):
            pass
