"""Worker: the kernel of a data set by one request of the SavedModel, after a request that compiles."""

from __future__ import annotations

import pathlib
import resource
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.measure import Report, run_worker, timed


def work(task: Mapping[str, Any], report: Report) -> None:
    """Times `ntk_symmetric` of `task["examples"]` examples."""
    import serving

    folder = pathlib.Path(task["folder"])
    model = serving.load(folder / "ntk/1", warmup=True)
    x = np.load(folder / "data.npz")["x1"][: task["examples"]]
    seconds, _ = timed(lambda: model.ntk_symmetric(x).numpy())
    report(seconds=seconds, peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
