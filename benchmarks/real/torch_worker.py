"""Worker: the same kernel by torch's autograd, output by output, or some outputs at a time by `vmap` where these fit.

Needs torch and NumPy, neither TensorFlow nor this project's exporter.
"""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.data import CaseData
from benchmarks.measure import Report, run_worker
from benchmarks.torch_models import MODELS, inputs_from_keras, variable_from_keras

_MEMORY_SHARE = 0.3  # of what the process may take, for gradients that are there at a time
_SECONDS = 40.0  # of one way to compute the kernel; what takes longer is told by the outputs that were done


def work(task: Mapping[str, Any], report: Report) -> None:
    """Measures kernels of the first examples of `task["data"]` with themselves, `task["examples"]` of them.

    Reports for each number seconds, how, and of how many outputs if it was not all; and writes whole kernels to the
    file `task["kernel"]`.
    """
    torch.set_num_threads(task["threads"])
    data = CaseData.load(pathlib.Path(task["data"]))
    frozen = {path: variable_from_keras(value) for path, value in data.frozen.items()}
    params = {path: variable_from_keras(value).requires_grad_() for path, value in data.trainable.items()}
    model, x = MODELS[task["case"]], inputs_from_keras(data.x1)
    combinations = torch.from_numpy(np.asarray(data.x2, np.float32))

    def rows(example: torch.Tensor) -> torch.Tensor:
        """The outputs, or their combinations, of an example: (R,)."""
        outputs = model({**frozen, **params}, example[None]).reshape(-1)
        return combinations @ outputs if len(combinations) else outputs

    found: dict[int, dict[str, Any]] = {}
    rows(x[0])  # the first is slower
    for n in task["examples"]:
        for at_once in _settings(rows(x[0]).numel(), n * data.parameters, _MEMORY_SHARE * task["bytes"] / 4):
            report(phase=f"{n} examples, {at_once} outputs at a time")
            entry, kernel = _measured(rows, list(params.values()), x[:n], at_once)
            if n not in found or entry["seconds"] < found[n]["seconds"]:
                found[n] = entry
            if kernel is not None:
                np.save(task["kernel"].format(n), kernel)
            report(torch={str(n): entry for n, entry in found.items()})


def _settings(rows: int, numbers: int, most: float) -> Iterator[int]:
    """How many outputs at a time: one, and if they fit and are not the same, some or all."""
    yield 1
    together = min(rows, 32, int(most // numbers))
    if together > 1:
        yield together


def _measured(
    rows: Any, params: list[torch.Tensor], x: torch.Tensor, at_once: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The seconds of the kernel of x with itself, the second time if that is soon; and the kernel, if it was all."""
    entry, kernel = _kernel(rows, params, x, at_once)
    if entry["seconds"] < _SECONDS / 4:
        entry, kernel = min((_kernel(rows, params, x, at_once) for _ in range(2)), key=lambda pair: pair[0]["seconds"])
    return entry, kernel


def _kernel(
    rows: Any, params: list[torch.Tensor], x: torch.Tensor, at_once: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    start = time.perf_counter()
    outputs = [rows(example) for example in x]
    forward = time.perf_counter() - start
    count, done = outputs[0].numel(), 0
    total = torch.zeros(len(x), len(x))
    while done < count and time.perf_counter() - start < _SECONDS:
        some = torch.eye(count)[done : done + at_once] if count <= 4096 else _unit_rows(done, at_once, count)
        jacobians = [_gradients(y, params, some) for y in outputs]
        for gradients in zip(*jacobians, strict=True):
            flat = torch.stack([g.reshape(-1) for g in gradients])
            total += flat @ flat.T
        done += len(some)
    seconds = time.perf_counter() - start
    way = "output by output" if at_once == 1 else f"{at_once} outputs at a time by vmap"
    entry = {"seconds": forward + (seconds - forward) * count / done, "outputs": count, "done": done, "way": way}
    return entry, (total / count).numpy() if done == count else None


def _unit_rows(first: int, size: int, count: int) -> torch.Tensor:
    some = torch.zeros(min(size, count - first), count)
    some[torch.arange(len(some)), first + torch.arange(len(some))] = 1
    return some


def _gradients(y: torch.Tensor, params: list[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """Of each parameter (R, ...)."""
    if len(rows) == 1:
        return list(torch.autograd.grad(y, params, rows[0], retain_graph=True))
    return list(torch.autograd.grad(y, params, rows, retain_graph=True, is_grads_batched=True))


if __name__ == "__main__":
    sys.exit(run_worker(work, sys.argv))
