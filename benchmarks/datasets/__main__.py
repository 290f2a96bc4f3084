"""Kernels of whole data sets: python -m benchmarks.datasets.

For the speed table's MLP and CNN: `ntk-dataset` (as a command, start included, with 1 and 2 workers), one request for
the same kernel, `neural_tangents.batch` of structured derivatives (JAX on the same cores), and torch.func's Jacobians
in blocks. Contenders that would take hours are asked for fewer examples; compare pairs a second. Also features a
second, and what the same command costs when all is there.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import psutil
from absl import app, flags

from benchmarks import machine
from benchmarks.isolation import Limits, run_isolated

_MODELS = flags.DEFINE_list("models", ["mlp", "cnn"], "Rows of the speed table.")
_EXAMPLES = flags.DEFINE_list("examples", ["2000", "10000"], "Sizes of the data set.")
_THEIRS = flags.DEFINE_list("contenders", ["request", "neural_tangents", "torch"], "Beside ntk-dataset.")
_NT_EXAMPLES = flags.DEFINE_integer("nt_examples", 2000, "Examples that neural-tangents is asked for at most.")
_TORCH_EXAMPLES = flags.DEFINE_integer("torch_examples", 128, "Examples that torch is asked for at most.")
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "An interpreter that has torch.")
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Workers of ntk-dataset.")
_SECONDS = flags.DEFINE_integer("seconds", 1800, "Limit for each process.")

_LINE = "{:<6} {:<46} {:>9} {:>10} {:>14} {:>12}"


def main(arguments: list[str]) -> None:
    """Runs all and prints a table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected flags only, received {arguments[1]!r}")
    print(" · ".join(f"{name} {value}" for name, value in machine.describe(_TORCH_PYTHON.value).items()))
    print(_LINE.format("", "", "examples", "seconds", "pairs/s", "MiB/process"))
    limits = Limits(_SECONDS.value, int(0.8 * machine.memory_bytes()))
    for model in _MODELS.value:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            task: dict[str, Any] = {"case": model, "folder": folder, "threads": machine.cores()}
            sizes = sorted(map(int, _EXAMPLES.value))
            made = run_isolated("benchmarks.datasets.export_worker", {**task, "sizes": sizes}, path, limits)
            if made.failure:
                _show(model, "export", sizes[-1], made.failure)
                continue
            for n in sizes:
                for workers in _WORKERS.value:
                    _dataset(model, path, n, workers)
            if "request" in _THEIRS.value:
                for n in sizes:
                    _worker(model, "one request", "request_worker", {**task, "examples": n}, path, limits)
            for name, title, most in (
                ("neural_tangents", "neural_tangents.batch, structured derivatives", _NT_EXAMPLES.value),
                ("torch", "torch.func, Jacobians of blocks", _TORCH_EXAMPLES.value),
            ):
                if name in _THEIRS.value:
                    python = _TORCH_PYTHON.value if name == "torch" else sys.executable
                    n = min(most, sizes[-1])
                    _worker(model, title, f"{name}_worker", {**task, "examples": n}, path, limits, python)


def _dataset(model: str, folder: pathlib.Path, n: int, workers: str) -> None:
    """The two commands, and the first one again."""
    for kind in ("kernel", "features"):
        output = folder / f"{kind}_{n}_{workers}.zarr"
        arguments = [f"--export={folder / 'ntk'}", f"--data={folder / f'{n}.npz'}", f"--output={output}"]
        for title in (f"ntk-dataset {kind}, {workers} workers", "the same again"):
            seconds, printed, largest = _run([kind, *arguments, f"--workers={workers}"])
            told = re.search(r"([\d,]+) examples/s", printed)
            rate = f"{told[1]} rows/s" if told and kind == "features" else None
            _show(model, title, n, seconds, rate, largest)


def _run(arguments: list[str]) -> tuple[float | str, str, int]:
    """Seconds of the command or why it failed, what it printed, and the resident bytes of its largest process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.dataset.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    largest, ps = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            sizes = [p.memory_info().rss for p in (ps, *ps.children(recursive=True))]
        except psutil.NoSuchProcess:
            continue
        largest = max(largest, *sizes)
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    stdout, stderr = process.communicate()
    failure = stderr.strip().splitlines()[-1:] if process.returncode else []
    return (failure[0] if failure else seconds), stdout, largest


def _worker(
    model: str,
    title: str,
    module: str,
    task: dict[str, Any],
    folder: pathlib.Path,
    limits: Limits,
    python: str = sys.executable,
) -> None:
    outcome = run_isolated(f"benchmarks.datasets.{module}", task, folder, limits, python=python)
    told: float | str = outcome.failure or outcome.facts["seconds"]
    _show(model, title, task["examples"], told, None, outcome.facts.get("peak", 0))


def _show(model: str, title: str, n: int, seconds: float | str, rate: str | None = None, peak: int = 0) -> None:
    if isinstance(seconds, str):
        print(_LINE.format(model, title, f"{n:,}", seconds, "", ""), flush=True)
        return
    rate = f"{n * n / seconds:,.0f}" if rate is None else rate
    print(
        _LINE.format(model, title, f"{n:,}", f"{seconds:.1f}", rate, f"{peak / 2**20:,.0f}" if peak else ""), flush=True
    )


if __name__ == "__main__":
    app.run(main)
