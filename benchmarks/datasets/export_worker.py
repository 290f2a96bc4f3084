"""Worker: exports a case's model, and writes data sets and variables for the contenders."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.cases import CASES
from benchmarks.data import CaseData
from benchmarks.measure import Report, run_worker


def work(task: Mapping[str, Any], report: Report) -> None:
    """Writes `ntk`, `data.npz` (of the largest of `task["sizes"]`) and a file of examples for each size."""
    from exporter import ExportConfig, export_savedmodel
    from exporter.functionalize import functionalize

    folder, case = pathlib.Path(task["folder"]), CASES[task["case"]]
    model = case.build()
    functional = functionalize(model)
    x, _ = dataclasses.replace(case, n=max(task["sizes"])).inputs(model.input_shape[1:])
    CaseData(x, x[:1], functional.trainable, functional.frozen, np.zeros((1, 1))).save(folder / "data.npz")
    for n in task["sizes"]:
        np.savez(folder / f"{n}.npz", x=x[:n])
    export_savedmodel(model, folder / "ntk", export=ExportConfig(platforms=("cpu",)))


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
