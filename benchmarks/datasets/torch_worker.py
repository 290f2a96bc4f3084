"""Worker: the same by torch.func: each block's Jacobians, and their products with those of the blocks after it.

Needs torch and NumPy, neither TensorFlow nor this project's exporter.
"""

from __future__ import annotations

import pathlib
import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.func import jacrev, vmap

from benchmarks.data import CaseData
from benchmarks.measure import Report, run_worker, timed
from benchmarks.torch_models import MODELS, inputs_from_keras, variable_from_keras

_BLOCK = 32  # examples whose Jacobians are in memory on each side


def work(task: Mapping[str, Any], report: Report) -> None:
    """Times the symmetric half of the kernel of `task["examples"]` examples, after a block."""
    torch.set_num_threads(task["threads"])
    data = CaseData.load(pathlib.Path(task["folder"]) / "data.npz")
    params, frozen = (
        {path: variable_from_keras(value) for path, value in values.items()} for values in (data.trainable, data.frozen)
    )
    x, model = inputs_from_keras(data.x1[: task["examples"]]), MODELS[task["case"]]

    def outputs(p: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return model({**frozen, **p}, x[None])[0]

    def jacobians(start: int) -> torch.Tensor:
        each = vmap(jacrev(outputs), in_dims=(None, 0))(params, x[start : start + _BLOCK])
        return torch.cat([jacobian.flatten(1) for jacobian in each.values()], 1)

    def kernel() -> torch.Tensor:
        result = torch.zeros(len(x), len(x))
        for i in range(0, len(x), _BLOCK):
            left = jacobians(i)
            for j in range(i, len(x), _BLOCK):
                block = left @ (left if i == j else jacobians(j)).T
                result[i : i + _BLOCK, j : j + _BLOCK] = block
                result[j : j + _BLOCK, i : i + _BLOCK] = block.T
        return result / outputs(params, x[0]).shape[-1]

    jacobians(0)
    seconds, _ = timed(kernel)
    report(seconds=seconds, peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
