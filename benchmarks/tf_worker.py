"""Worker: one of this project's implementations, lowered by the exporter and run by TensorFlow's XLA."""

from __future__ import annotations

import pathlib
import statistics
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import Repetitions, Report, measure, run_worker

if TYPE_CHECKING:
    from exporter.functionalize import FunctionalModel

_MATRIX_SIZE = 4096  # of the product that shows what the machine can do: 137 GFLOP


def work(task: Mapping[str, Any], report: Report) -> None:
    """Measures `task["implementation"]` on `task["case"]`, and writes the kernel to the file `task["kernel"]`."""
    import jax
    import keras
    import tensorflow as tf

    from benchmarks.cases import CASES
    from benchmarks.data import CaseData
    from exporter.config import ExportConfig
    from exporter.functionalize import functionalize
    from exporter.graph.lowering import lower
    from exporter.ntk.kernel import kernel_fn

    tf.config.threading.set_intra_op_parallelism_threads(task["threads"])
    data = CaseData.load(pathlib.Path(task["data"]))
    keras.utils.set_random_seed(0)
    model = functionalize(CASES[task["case"]].build())
    kernel = kernel_fn(
        model.apply_fn,
        implementation=task["implementation"],
        trace_axes=(-1 % len(model.output.shape),),
        diagonal_axes=(),
        memory=ExportConfig().memory_budget // 2,  # as exporter.plan.planning has it
        platforms=("cpu",),
    )
    program = lower(kernel, platforms=("cpu",))
    trainable, frozen = (
        {path: tf.Variable(value) for path, value in values.items()} for values in (data.trainable, data.frozen)
    )

    @tf.function(autograph=False)
    def served(x1: Any, x2: Any) -> Any:
        params, others = ({p: v.read_value() for p, v in values.items()} for values in (trainable, frozen))
        return program(params, others, (x1,), (x2,))

    x1, x2 = tf.constant(data.x1), tf.constant(data.x2)
    report(phase="lowering")
    start = time.perf_counter()
    concrete = served.get_concrete_function(x1, x2)
    report(lower_seconds=time.perf_counter() - start)
    jax.clear_caches()
    result = measure(lambda: concrete(x1, x2).numpy(), report, Repetitions(**task["repetitions"]))
    np.save(task["kernel"], result)
    if task["implementation"] == "layerwise":
        report(phase="matrix product", flops=kernel_flops(model, data.x1, data.x2))
        report(matmul_flops_per_second=matmul_flops_per_second())


def kernel_flops(model: FunctionalModel, x1: np.ndarray, x2: np.ndarray) -> float:
    """Floating point operations of one call by the engine's own count, as `ntk-export --explain` has it."""
    from exporter.ntk.layerwise.costs import site_costs
    from exporter.ntk.layerwise.features import ExampleFeatures

    features = ExampleFeatures(
        model.apply_fn,
        model.trainable,
        model.frozen,
        (x1,),
        counts=(len(x1), len(x2)),
        trace_axes=(-1 % len(model.output.shape),),
        diagonal_axes=(),
        narrow=True,
    )
    return sum(cost.flops(len(x1), len(x2)) for cost in site_costs(features))


def matmul_flops_per_second() -> float:
    """The rate of a large float32 matrix product in TensorFlow's XLA."""
    import tensorflow as tf

    a, b = (tf.random.stateless_uniform((_MATRIX_SIZE, _MATRIX_SIZE), seed=(k, k)) for k in range(2))

    @tf.function(jit_compile=True)
    def product(a: Any, b: Any) -> Any:
        return tf.matmul(a, b)

    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        product(a, b)[0, 0].numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * _MATRIX_SIZE**3 / statistics.median(seconds[1:])


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
