"""Exports models of real size, loads them, asks for kernels, and compares with torch's autograd: one table.

Each step of each model runs in a process of its own, one after the other, within limits of time and memory: its file is
written, exported, loaded with an empty cache of XLA's programs and with a filled one, asked for kernels of 1, 2 and 8
examples with themselves, and torch for the same ones. What becomes known goes to standard error at once, the table to
standard output at the end, or where it is interrupted. benchmarks/README.md says what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.data import deviation
from benchmarks.engine import ENVIRONMENT, names_of, positive
from benchmarks.isolation import Limits, run_isolated
from benchmarks.real import report
from benchmarks.real.models import DEFAULT_MODELS, MODELS, RealModel
from serving.shared.xla_cache import VARIABLE, xla_flags

_SHARE = 0.8  # of the machine's memory, for one process


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the steps are run.

    Attributes:
      limits: of each process.
      threads: of torch.
      torch_python: the interpreter of torch's step.
      export_only: whether only exports are measured.
    """

    limits: Limits
    threads: int
    torch_python: str
    export_only: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments say, writes the table and returns the exit code: 1 if an export or request failed."""
    flags = _parse(argv)
    limits = Limits(flags.timeout, int(_SHARE * machine.memory_bytes()))
    settings = Settings(limits, machine.cores(), flags.torch_python, flags.export_only)
    heading = machine.describe(flags.torch_python)
    print(" · ".join(f"{key} {value}" for key, value in heading.items()), flush=True)
    rows: list[dict[str, Any]] = []
    try:
        for name in flags.models:
            rows.append({"name": name, "title": MODELS[name].title})
            measure(MODELS[name], settings, rows[-1])
            if flags.json:
                result = {"machine": heading, "settings": dataclasses.asdict(settings), "models": rows}
                flags.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print(f"\n{report.table(rows)}", flush=True)
    ours = [row.get(step, {"failure": "not run"}) for row in rows for step in _own_steps(settings)]
    return 1 if any(facts.get("failure") for facts in ours) else 0


def measure(model: RealModel, settings: Settings, row: dict[str, Any]) -> None:
    """Runs the steps of one model, and adds what they report to `row`; later ones are left out if one fails."""
    with tempfile.TemporaryDirectory(prefix="ntk_real_") as temporary:
        folder = pathlib.Path(temporary)
        cache = folder / "xla_cache"
        cache.mkdir()
        files = {"file": "model.keras", "base_dir": "export", "data": "data.npz"}
        task = {
            "model": model.name,
            "case": model.torch,
            "threads": settings.threads,
            "bytes": settings.limits.bytes,
            **{key: str(folder / name) for key, name in files.items()},
        }

        def run(step: str, module: str, python: str = sys.executable, *, examples: Sequence[int] = ()) -> bool:
            _say(model.name, step, "running")
            environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(settings.threads)}
            if step in ("cold", "cached"):
                environment[VARIABLE] = xla_flags(str(cache))
            more = {"step": step, "examples": examples, "kernel": str(folder / f"{step}_{{}}.npy")}
            outcome = run_isolated(module, task | more, folder, settings.limits, python=python, environment=environment)
            row[step] = {**outcome.facts, "failure": _known(outcome.failure)}
            _say(model.name, step, report.in_words(row[step], step))
            return outcome.failure is None

        if not run("build", "benchmarks.real.export_worker"):
            return
        if not run("export", "benchmarks.real.export_worker") or settings.export_only:
            return
        task["path"] = row["export"]["path"]
        if run("cold", "benchmarks.real.request_worker"):
            run("cached", "benchmarks.real.request_worker", examples=report.EXAMPLES)
        run("torch", "benchmarks.real.torch_worker", settings.torch_python, examples=report.TORCH_EXAMPLES)
        row["deviation"] = _deviation(folder)


def _own_steps(settings: Settings) -> Sequence[str]:
    return ("build", "export") if settings.export_only else ("build", "export", "cold", "cached")


def _deviation(folder: pathlib.Path) -> float | None:
    """How far our kernels are from torch's, of the numbers of examples of which there are both."""
    pairs = [[folder / f"{step}_{n}.npy" for step in ("cached", "torch")] for n in report.TORCH_EXAMPLES]
    found = [
        deviation(*(np.load(path).reshape(n, n) for path in pair))
        for n, pair in zip(report.TORCH_EXAMPLES, pairs, strict=True)
        if all(path.exists() for path in pair)
    ]
    return max(found, default=None)


def _known(failure: str | None) -> str | None:
    return "torch is not installed" if failure and "No module named 'torch'" in failure else failure


def _say(model: str, step: str, text: str) -> None:
    print(f"{model:<22} {step:<7} {text}", file=sys.stderr, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", type=names_of(MODELS), default=list(DEFAULT_MODELS), help=f"of {', '.join(MODELS)}; all but tiny"
    )
    parser.add_argument("--timeout", type=positive, default=900, help="seconds for one process; 900")
    parser.add_argument("--export_only", action="store_true", help="measure nothing but exports")
    parser.add_argument("--torch_python", default=sys.executable, help="interpreter that has torch and NumPy; this one")
    parser.add_argument("--json", type=pathlib.Path, help="file to which everything measured is written too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
