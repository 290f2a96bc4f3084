"""A small demo, for all tests."""

import fcntl
import json
import subprocess
import sys

import pytest

SMALL = (
    "--epochs=4",
    "--examples=150",
    "--references=150",
    "--set=export.platforms=[cpu]",
    "--set=export.signatures=[ntk_symmetric,ntk,ntk_diagonal,ntk_with_params,ntk_features,forward]",
    "--set=export.features.dimensions=1024",
    "--set=export.verify.examples=2",
    "--set=export.warmup=false",
)


@pytest.fixture(scope="session")
def demo(directory_of_all_workers):
    """The directory of the demo, and what it printed; made by the worker that asks first."""
    output, log = directory_of_all_workers / "demo", directory_of_all_workers / "demo.json"
    with open(directory_of_all_workers / "demo.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            command = [sys.executable, "-m", "examples.digits", str(output), *SMALL]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            log.write_text(json.dumps([done.stdout, done.stderr]))
    return output, *json.loads(log.read_text())
