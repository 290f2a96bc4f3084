"""Features of the speed table's CNN, in one run: python -m benchmarks.features.

Ours is the signature `ntk_features` of an exported SavedModel; beside it `ntk_diagonal` of the same, which makes the
exact kernel's features of each example and little more. The other is what PyTorch has: each example's Jacobian by
torch.func, projected by dattri's projector for CPUs to as many numbers. That takes far longer, so it is asked for fewer
examples (--torch_examples).
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from absl import app, flags

from benchmarks import machine
from benchmarks.isolation import Limits, run_isolated

_EXAMPLES = flags.DEFINE_integer("examples", 1000, "Examples that features are made of.", lower_bound=1)
_DIMENSIONS = flags.DEFINE_integer("dimensions", 4096, "Numbers of an example's features.", lower_bound=1)
_TORCH_EXAMPLES = flags.DEFINE_integer("torch_examples", 8, "Examples that torch and dattri are asked for.")
_TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "An interpreter that has torch and dattri.")
_SECONDS = flags.DEFINE_integer("seconds", 600, "Limit for each process.")

_LINE = "{:<58} {:>9} {:>14}"


def main(arguments: list[str]) -> None:
    """Runs both and prints a table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected flags only, received {arguments[1]!r}")
    print(" · ".join(f"{name} {value}" for name, value in machine.describe(_TORCH_PYTHON.value).items()))
    print(_LINE.format("", "examples", "ms an example"))
    limits = Limits(_SECONDS.value, int(0.8 * machine.memory_bytes()))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        task: dict[str, Any] = {
            "case": "cnn",
            "data": str(path / "data.npz"),
            "examples": _EXAMPLES.value,
            "dimensions": _DIMENSIONS.value,
            "threads": machine.cores(),
        }
        ours = run_isolated("benchmarks.features.tf_worker", task, path, limits)
        rows = {
            f"ntk_features, {_DIMENSIONS.value} numbers": "features_seconds",
            "ntk_diagonal, of the exact kernel's features": "diagonal_seconds",
        }
        _show(rows, ours.facts, ours.failure, _EXAMPLES.value)
        task["examples"] = _TORCH_EXAMPLES.value
        theirs = run_isolated("benchmarks.features.torch_worker", task, path, limits, python=_TORCH_PYTHON.value)
        rows = {
            "torch.func Jacobians": "jacobian_seconds",
            "torch.func Jacobians, projected by dattri": "projected_seconds",
        }
        _show(rows, theirs.facts, theirs.failure, _TORCH_EXAMPLES.value)


def _show(rows: Mapping[str, str], facts: Mapping[str, Any], failure: str | None, examples: int) -> None:
    for title, key in rows.items():
        told = f"{1e3 * facts[key] / examples:.2f}" if key in facts else (failure or "")
        print(_LINE.format(title, examples, told), flush=True)


if __name__ == "__main__":
    app.run(main)
