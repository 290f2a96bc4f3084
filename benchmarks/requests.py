"""How long requests of several sizes take, and how much memory: python -m benchmarks.requests SAVED_MODEL.

The SavedModel is loaded and warmed up, so that nothing is compiled while it is measured. Each time is the median of
several calls (of one, if it takes more than a few seconds); memory is the most by which the process grew meanwhile.

With --model=MODEL, the one that was exported, each n × n request is also made of a program for just this number of
examples, compiled for it; their calls take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.measure import forget_peak, memory, timed

_SIZES = flags.DEFINE_list("sizes", ["1", "8", "64", "128", "256", "512", "1024"], "Numbers of examples.")
_MODEL = flags.DEFINE_string("model", None, "The exported model, to compare with programs of one shape each.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Time for the calls of one size, if one takes no longer.")


def main(arguments: list[str]) -> None:
    """Measures the SavedModel that the command line names, and prints a table."""
    if len(arguments) != 2:
        raise app.UsageError("expected the directory of one SavedModel, such as demo/digits_ntk/1")
    import tensorflow as tf

    import serving

    start = time.perf_counter()
    tf.saved_model.load(arguments[1])
    loaded = time.perf_counter()
    model = serving.load(arguments[1], warmup=True)
    print(f"load {loaded - start:.1f} s, load and warmup {time.perf_counter() - loaded:.1f} s\n")
    inputs = model.signatures["ntk"].structured_input_signature[1]
    if set(inputs) != {"x1", "x2"}:
        raise app.UsageError(f"expected a model with one input, received one with {', '.join(sorted(inputs))}")
    dedicated = _dedicated(_MODEL.value, arguments[1], model) if _MODEL.value else None
    columns = ["n", "n × n", "ms for an example", "MiB", "symmetric", "of n × n", "diagonal"]
    columns += ["one shape", "n × n of one shape"] if dedicated else []
    print("| " + " | ".join(columns) + " |\n|" + " ---: |" * len(columns))
    for n in map(int, _SIZES.value):
        x1, x2 = (tf.constant(_examples(inputs["x1"], n, seed)) for seed in (0, 1))
        ((pair,), mib), ((symmetric,), _), ((diagonal,), _) = (
            _measured(_to_numpy(fn, *x))
            for fn, x in ((model.ntk, (x1, x2)), (model.ntk_symmetric, (x1,)), (model.ntk_diagonal, (x1,)))
        )
        cells = [
            str(n),
            f"{pair:.4g} s",
            f"{1e3 * pair / (2 * n):.2f}",
            f"{mib:.0f}",
            f"{symmetric:.4g} s",
            f"{symmetric / pair:.0%}",
            f"{diagonal:.4g} s",
        ]
        if dedicated:
            call = _to_numpy(dedicated, x1, x2)
            call()  # compiles it
            (one_shape, pair), _ = _measured(call, _to_numpy(model.ntk, x1, x2))
            cells += [f"{one_shape:.4g} s", f"{pair / one_shape:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def _dedicated(model: str, path: str, saved_model: Any) -> Callable[[Any, Any], Any]:
    """The kernel of the model, with the SavedModel's configuration and variables, as one program for each shape."""
    from exporter.config import ExportConfig, load_config
    from exporter.graph.lowering import lower
    from exporter.load import load_model
    from exporter.plan.planning import make_plan
    from serving.shared.exports import read_manifest

    manifest = read_manifest(Path(path))
    ntk, _ = load_config(json.dumps({"ntk": manifest["configuration"]["ntk"]}))
    plan = make_plan(load_model(model), ntk, ExportConfig())
    program = lower(plan.kernel(manifest["implementation"]), platforms=("cpu",))
    variables = [{p: v.read_value() for p, v in d.items()} for d in (saved_model.params, saved_model.frozen)]
    return lambda x1, x2: program(*variables, (x1,), (x2,))


def _examples(spec: Any, n: int, seed: int) -> np.ndarray:
    shape = (n, *(size or 1 for size in spec.shape[1:]))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) if spec.dtype.is_floating else rng.integers(0, 2, shape)
    return values.astype(spec.dtype.as_numpy_dtype)


def _to_numpy(fn: Callable[..., Any], *x: Any) -> Callable[[], np.ndarray]:
    return lambda: fn(*x).numpy()


def _measured(*calls: Callable[[], np.ndarray]) -> tuple[list[float], float]:
    """Median seconds of each of these calls, in turns, and the MiB by which the process grew at most."""
    seconds: list[list[float]] = [[] for _ in calls]
    before = memory("VmRSS")
    forget_peak()
    while not seconds[0] or sum(map(sum, seconds)) + seconds[0][-1] < _SECONDS.value * len(calls):
        for call, times in zip(calls, seconds, strict=True):
            times.append(timed(call)[0])
    growth = max(0, memory("VmHWM") - before)
    return [statistics.median(times[1:] or times) for times in seconds], growth / 2**20


def run() -> None:
    """Runs as a program."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app.run(main, argv=sys.argv)


if __name__ == "__main__":
    run()
