"""Worker: a SavedModel loaded and warmed up, and its requests; TensorFlow alone."""

from __future__ import annotations

import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.data import CaseData
from benchmarks.measure import Report, forget_peak, memory, run_worker, timed

_ENOUGH = 10.0  # seconds of calls of one number of examples, if there are three; or of a single one


def work(task: Mapping[str, Any], report: Report) -> None:
    """Measures how long loading takes, and requests for kernels of the first examples of `task["data"]`.

    The numbers of examples are `task["examples"]`; the kernel of the largest of them but the last two goes to the file
    `task["kernel"]`.
    """
    import tensorflow as tf

    import serving
    from benchmarks.tf_worker import matmul_flops_per_second

    report(phase="load")
    start = time.perf_counter()
    tf.saved_model.load(task["path"])
    report(load_seconds=time.perf_counter() - start, phase="load and warmup")
    start = time.perf_counter()
    model = serving.load(task["path"], warmup=True)
    report(start_seconds=time.perf_counter() - start)
    if not task["examples"]:
        return
    x = CaseData.load(pathlib.Path(task["data"])).x1
    seconds, growth = {}, {}
    for n in task["examples"]:
        report(phase=f"{n} examples")
        call = functools.partial(_kernel, model, tf.constant(x[:n]))
        before = memory("VmRSS")
        forget_peak()
        seconds[n], kernel = median_seconds(call)
        growth[n] = max(0, memory("VmHWM") - before)
        report(seconds=seconds, growth=growth, peak_bytes=memory("VmHWM"))
        np.save(task["kernel"].format(n), kernel)
    report(phase="matrix product")
    report(matmul_flops_per_second=matmul_flops_per_second())


def _kernel(model: Any, x: Any) -> np.ndarray:
    kernel: np.ndarray = model.ntk_symmetric(x).numpy()
    return kernel


def median_seconds(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Of three calls and more, the first left out; of as many as there is time for, if one takes long."""
    first, result = timed(call)
    if first > _ENOUGH:
        return first, result
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < 1.0 and len(seconds) < 100):
        elapsed, result = timed(call)
        seconds.append(elapsed)
        if sum(seconds) > _ENOUGH:
            break
    return statistics.median(seconds), result


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
