"""ntk-dataset as users run it: in processes, which are killed."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

N = 1000
MEMORY = "1105MiB"  # for 6 tiles
COMMAND = [sys.executable, "-m", "serving.dataset.main", "kernel"]


@pytest.fixture(scope="module")
def arguments(exported, tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "x.npz"
    (x,) = exported("many_outputs").inputs(N)
    np.savez(data, x=x, y=np.arange(N))
    return [f"--export={exported('many_outputs').path.parent}", f"--data={data}", "--workers=1", f"--memory={MEMORY}"]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("store") / "k.zarr"
    done = subprocess.run([*COMMAND, *arguments, f"--output={output}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(output)
    return output


def chunks(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def started(arguments, output):
    """The command, as a process."""
    command = [*COMMAND, *arguments, f"--output={output}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_whatever_is_killed_the_result_is_the_same(arguments, undisturbed, tmp_path):
    output = tmp_path / "k.zarr"
    with started(arguments, output) as process:
        while not list(output.glob("kernel/c/*/*")) and process.poll() is None:
            time.sleep(0.01)
        left = workers(process)
        process.kill()
        process.communicate(timeout=60)
    psutil.wait_procs(left, timeout=30)
    assert left
    assert not [worker for worker in left if worker.is_running()]
    assert 0 < len(chunks(output)) < len(chunks(undisturbed))

    with started(arguments, output) as process:
        while not process.stdout.readline().startswith("workers"):  # they have loaded the export, and begin
            assert process.poll() is None
        workers(process)[0].kill()
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert chunks(output) == chunks(undisturbed)
