"""Worker: each example's Jacobian by torch.func, and its projection by dattri.

Needs torch, dattri and NumPy, neither TensorFlow nor this project's exporter.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from dattri.func.projection import random_project
from torch.func import jacrev, vmap

from benchmarks.data import CaseData
from benchmarks.measure import Report, run_worker, timed
from benchmarks.torch_models import MODELS, inputs_from_keras, variable_from_keras


def work(task: Mapping[str, Any], report: Report) -> None:
    """Times the Jacobians of `task["examples"]` examples, and these with their projection, after a call of each."""
    torch.set_num_threads(task["threads"])
    data = CaseData.load(pathlib.Path(task["data"]))
    params, frozen = (
        {path: variable_from_keras(value) for path, value in values.items()} for values in (data.trainable, data.frozen)
    )
    x = inputs_from_keras(data.x1[: task["examples"]])
    model = MODELS[task["case"]]

    def outputs(p: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return model({**frozen, **p}, x[None])[0]

    def jacobians() -> torch.Tensor:
        """(examples, outputs times parameters), whose products are the kernel's."""
        each = vmap(jacrev(outputs), in_dims=(None, 0))(params, x)
        return torch.cat([jacobian.flatten(1) for jacobian in each.values()], 1)

    jacobians()
    seconds, rows = timed(jacobians)
    report(jacobian_seconds=seconds)
    project = random_project(rows, len(rows), task["dimensions"], 32, proj_seed=0, proj_type="rademacher", device="cpu")
    seconds, _ = timed(lambda: project(jacobians()))
    report(projected_seconds=seconds)


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
