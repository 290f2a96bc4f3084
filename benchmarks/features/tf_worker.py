"""Worker: exports a case's model, and times features of the SavedModel."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.cases import CASES
from benchmarks.data import CaseData
from benchmarks.measure import Report, run_worker, timed

_CALLS = 3


def work(task: Mapping[str, Any], report: Report) -> None:
    """Times `ntk_features` and `ntk_diagonal`; leaves examples and variables in the file `task["data"]`."""
    import tensorflow as tf

    from exporter import ExportConfig, NtkConfig, export_savedmodel
    from exporter.config import FeaturesConfig, VerifyConfig
    from exporter.functionalize import functionalize

    case = CASES[task["case"]]
    model = case.build()
    functional = functionalize(model)
    examples = dataclasses.replace(case, n=task["examples"])
    x, _ = examples.inputs(model.input_shape[1:])
    CaseData(x, x[:1], functional.trainable, functional.frozen, np.zeros((1, 1))).save(pathlib.Path(task["data"]))
    with tempfile.TemporaryDirectory() as folder:
        config = ExportConfig(
            platforms=("cpu",),
            signatures=("ntk_features", "ntk_diagonal"),
            features=FeaturesConfig(dimensions=task["dimensions"]),
            verify=VerifyConfig(examples=2),
        )
        loaded = tf.saved_model.load(export_savedmodel(model, pathlib.Path(folder) / "cnn", NtkConfig(), config).path)
        x = tf.constant(x)
        for name in ("features", "diagonal"):
            call = functools.partial(lambda fn: fn(x).numpy(), getattr(loaded, f"ntk_{name}"))
            seconds = [timed(call)[0] for _ in range(1 + _CALLS)]
            report(**{f"{name}_seconds": sorted(seconds[1:])[_CALLS // 2]})


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
