"""ntk-dataset as users run it: in processes, which are killed."""

import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import zarr

N = 1000
MEMORY, TILES = "1102MiB", 25  # of which 15 are computed, the others mirrored
COMMAND = [sys.executable, "-m", "serving.dataset.main", "kernel"]


@pytest.fixture(scope="module")
def arguments(exported, tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "x.npz"
    (x,) = exported("many_outputs").inputs(N)
    np.savez(data, x=x, y=np.arange(N))
    return [f"--export={exported('many_outputs').path.parent}", f"--data={data}", "--workers=1", f"--memory={MEMORY}"]


def started(arguments, output):
    """The command, as a process."""
    command = [*COMMAND, *arguments, f"--output={output}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def chunks(store):
    return list(store.glob("kernel/c/*/*"))


def test_whatever_is_killed_the_result_is_the_kernel(exported, arguments, tmp_path):
    output = tmp_path / "k.zarr"
    with started(arguments, output) as process:
        while not chunks(output) and process.poll() is None:
            time.sleep(0.01)
        left = workers(process)
        process.kill()
        process.communicate(timeout=60)
    psutil.wait_procs(left, timeout=30)
    assert left
    assert not [worker for worker in left if worker.is_running()]
    assert 0 < len(chunks(output)) < TILES

    with started(arguments, output) as process:
        while not process.stdout.readline().startswith("workers"):  # they have loaded the export, and begin
            assert process.poll() is None
        workers(process)[0].kill()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(output)
    group = zarr.open_group(str(output), mode="r")
    expected = exported("many_outputs").loaded.ntk_symmetric(*exported("many_outputs").inputs(N)).numpy()
    np.testing.assert_allclose(group["kernel"][:], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert group["y"][:].tolist() == group["id"][:].tolist() == list(range(N))
