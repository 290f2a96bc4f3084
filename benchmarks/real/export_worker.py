"""Worker: a model of its own process, written to its file, or exported from it, stage by stage."""

from __future__ import annotations

import contextlib
import math
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.data import CaseData
from benchmarks.measure import Report, memory, run_worker

EXAMPLES = 8  # at most, of a request that is measured


def build(task: Mapping[str, Any], report: Report) -> None:
    """Writes the model named `task["model"]` to the file `task["file"]`."""
    import keras

    from benchmarks.cases import keep_signals_alive
    from benchmarks.real.models import MODELS

    real = MODELS[task["model"]]
    keras.utils.set_random_seed(0)
    model = real.build()
    keep_signals_alive(model, real.inputs(model.inputs[0], 4))
    model.save(task["file"])
    report(parameters=model.count_params())


def export(task: Mapping[str, Any], report: Report) -> None:
    """Exports the model from its file into `task["base_dir"]`, and writes what torch needs to `task["data"]`."""
    from benchmarks.real.models import MODELS
    from exporter import ExportConfig, NtkConfig, export_savedmodel
    from exporter.functionalize import functionalize
    from exporter.load import load_model
    from exporter.ntk.sampled_traces import signs

    real = MODELS[task["model"]]
    stages = Stages(report)
    start = time.perf_counter()
    with stages.stage("load"):
        model = load_model(task["file"])
    ntk, config = NtkConfig(**real.ntk), ExportConfig(**real.export)
    result = export_savedmodel(model, task["base_dir"], ntk, config, progress=stages)
    report(
        export_seconds=time.perf_counter() - start,
        bytes=sum(path.stat().st_size for path in result.path.rglob("*") if path.is_file()),
        peak_bytes=memory("VmHWM"),
        peak_bytes_of_check=1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        verification=result.manifest["verification"]["seconds"],
        trace=result.manifest["trace"],
        flops=result.manifest["flops"],
        path=str(result.path),
    )
    functional = functionalize(model)
    outputs = math.prod(size or 1 for size in functional.output.shape[1:])
    samples = real.ntk.get("trace_samples")
    combinations = np.zeros((0, outputs)) if samples is None else signs(samples, outputs, 0) / np.sqrt(outputs)
    x = real.inputs(functional.inputs[0], EXAMPLES)
    CaseData(x, combinations, functional.trainable, functional.frozen, np.zeros(0)).save(pathlib.Path(task["data"]))


class Stages:
    """Reports the seconds of each stage, and what it says."""

    def __init__(self, report: Report) -> None:
        """Reports `stages`, by name."""
        self._report, self._stages = report, dict[str, dict[str, Any]]()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        """Runs the body."""
        start, notes = time.perf_counter(), [""]

        def note(text: str, done: int = 0, total: int = 0, /) -> None:
            notes.append(text)
            self._report(phase=f"{name}: {text}")

        self._report(phase=name)
        yield note
        self._stages[name] = {"seconds": time.perf_counter() - start, "note": notes[-1]}
        self._report(stages=self._stages)


def work(task: Mapping[str, Any], report: Report) -> None:
    """Does the step that the task names."""
    {"build": build, "export": export}[task["step"]](task, report)


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
