"""Worker: the same by `neural_tangents.batch` of structured derivatives, in JAX, after a call of one block."""

from __future__ import annotations

import pathlib
import resource
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.cases import CASES
from benchmarks.data import CaseData
from benchmarks.measure import Report, run_worker, timed

_BLOCK = 50  # examples a side; larger and smaller ones were slower


def work(task: Mapping[str, Any], report: Report) -> None:
    """Times the kernel of `task["examples"]` examples with themselves."""
    from exporter.compat.neural_tangents_names import import_neural_tangents
    from exporter.functionalize import functionalize

    nt = import_neural_tangents()
    data = CaseData.load(pathlib.Path(task["folder"]) / "data.npz")
    model = functionalize(CASES[task["case"]].build())

    def apply_fn(params: Any, x: Any) -> Any:
        return model.apply_fn(params, data.frozen, (x,))

    structured = nt.NtkImplementation.STRUCTURED_DERIVATIVES
    kernel = nt.empirical_ntk_fn(apply_fn, trace_axes=(-1,), vmap_axes=0, implementation=structured)
    batched = nt.batch(kernel, batch_size=_BLOCK, device_count=0, store_on_device=False)
    x = data.x1[: task["examples"]]
    batched(x[:_BLOCK], None, data.trainable)
    seconds, _ = timed(lambda: np.asarray(batched(x, None, data.trainable)))
    report(seconds=seconds, peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
