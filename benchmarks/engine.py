"""Compares the kernel engine with neural-tangents and torch.func: speed, compilation, memory and accuracy.

Each contender runs in a process of its own, one after the other. The tables are written to standard output, progress to
standard error; the exit code is 1 if our engine failed or is not accurate. benchmarks/README.md says what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import machine, report
from benchmarks.cases import CASES, DEFAULT_CASES, Case
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.data import CaseData, deviation
from benchmarks.isolation import Limits, Outcome, run_isolated
from benchmarks.measure import Repetitions

ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",  # times and memory are those of the CPU
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How contenders are run.

    Attributes:
      limits: of each process.
      threads: that computations use.
      repetitions: of timed calls.
      torch_python: the interpreter of torch's contenders.
    """

    limits: Limits
    threads: int
    repetitions: Repetitions
    torch_python: str = sys.executable


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments say, writes the tables and returns the exit code."""
    flags = _parse(argv)
    settings = Settings(
        Limits(flags.timeout, int(2**30 * flags.memory_limit)),
        flags.threads,
        Repetitions(shortest=flags.seconds),
        flags.torch_python,
    )
    heading = machine.describe(flags.torch_python) | {"threads": str(flags.threads)}
    print(" · ".join(f"{key} {value}" for key, value in heading.items()), flush=True)
    rows = [measure_case(CASES[name], flags.contenders, settings) for name in flags.models]
    print(f"\n{report.summary(rows, flags.contenders)}\n\n{report.details(rows, flags.contenders)}", flush=True)
    if flags.json:
        result = {"machine": heading, "settings": dataclasses.asdict(settings), "models": rows}
        flags.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    failures = [failure for row in rows if (failure := our_failure(row, flags.tolerance))]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def measure_case(case: Case, contenders: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Runs the contenders of one case, one after the other; returns a row for `benchmarks.report`."""
    with tempfile.TemporaryDirectory(prefix="ntk_benchmark_") as temporary:
        folder = pathlib.Path(temporary)
        data_file, kernel_file = folder / "data.npz", folder / "kernel.npy"
        task = {
            "case": case.name,
            "data": str(data_file),
            "kernel": str(kernel_file),
            "threads": settings.threads,
            "bytes": settings.limits.bytes,
            "repetitions": dataclasses.asdict(settings.repetitions),
        }
        row: dict[str, Any] = {"name": case.name, "title": case.title, "n": case.n}
        _say(case.name, "reference", "running")
        limits = dataclasses.replace(settings.limits, seconds=math.inf)  # no contender
        shared = run_isolated("benchmarks.reference_worker", task, folder, limits, environment=ENVIRONMENT)
        row |= {fact: shared.facts.get(fact) for fact in ("outputs", "parameters")}
        if shared.failure:
            _say(case.name, "reference", shared.failure)
            return row | {"entries": {name: {"failure": f"no reference: {shared.failure}"} for name in contenders}}
        reference = CaseData.load(data_file).reference
        entries = {}
        for name in contenders:
            contender = CONTENDERS[name]
            _say(case.name, name, "running")
            kernel_file.unlink(missing_ok=True)
            outcome = run_isolated(
                contender.module,
                {**task, **contender.task},
                folder,
                settings.limits,
                python=settings.torch_python if contender.family == "torch" else sys.executable,
                environment=ENVIRONMENT | {"OMP_NUM_THREADS": str(settings.threads)},
            )
            entries[name] = _entry(outcome, kernel_file, reference)
            _say(case.name, name, report.in_words(entries[name]))
        return row | {"entries": entries}


def our_failure(row: Mapping[str, Any], tolerance: float) -> str | None:
    """Why our own result cannot be shown as it is, or None."""
    entry = row["entries"].get(OURS.name)
    if entry is None:
        return None
    if entry["failure"]:
        return f"{row['name']}: {entry['failure']}"
    if not entry["deviation"] <= tolerance:
        return (
            f"{row['name']}: expected a kernel within {tolerance:g} of the float64 Jacobian's, relative to its largest "
            f"entry, received one off by {entry['deviation']:.2g}"
        )
    return None


def _entry(outcome: Outcome, kernel: pathlib.Path, reference: np.ndarray) -> dict[str, Any]:
    """What is known of a contender: what it reported, its failure or None, and how far its kernel is off."""
    entry = {**outcome.facts, "failure": outcome.failure}
    if outcome.failure is None:
        entry["deviation"] = deviation(np.load(kernel), reference)
    elif "No module named 'torch'" in outcome.failure:
        entry["failure"] = "torch is not installed"
    return entry


def _say(case: str, contender: str, text: str) -> None:
    print(f"{case:<18} {contender:<26} {text}", file=sys.stderr, flush=True)


def names_of(known: Mapping[str, Any]) -> Any:
    """The type of an argument that names some of what is known."""

    def names(text: str) -> list[str]:
        given = [name for name in text.split(",") if name]
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known)}, separated by commas; received {', '.join(unknown) or text!r}"
            )
        return list(dict.fromkeys(given))

    return names


def positive(text: str) -> float:
    """The type of an argument that is a positive number."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, received {text}")
    return value


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    parser.add_argument(
        "--models", type=names_of(CASES), default=list(DEFAULT_CASES), help=f"of {', '.join(CASES)}; all but tiny"
    )
    parser.add_argument(
        "--contenders", type=names_of(CONTENDERS), default=list(CONTENDERS), help=f"of {', '.join(CONTENDERS)}; all"
    )
    parser.add_argument("--timeout", type=positive, default=360, help="seconds for one contender, all included; 360")
    parser.add_argument(
        "--memory_limit",
        type=positive,
        default=0.8 * machine.memory_bytes() / 2**30,
        help="GiB for one contender's process; 80%% of the machine's",
    )
    parser.add_argument("--seconds", type=positive, default=2, help="for which calls are repeated, at least; 2")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of a contender; one per core")
    parser.add_argument(
        "--tolerance",
        type=positive,
        default=1e-4,
        help="how far our kernel may be from float64, relative to its largest entry; 1e-4",
    )
    parser.add_argument("--torch_python", default=sys.executable, help="interpreter that has torch and NumPy; this one")
    parser.add_argument("--json", type=pathlib.Path, help="file to which everything measured is written too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
