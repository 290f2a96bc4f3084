"""What a contender's own process does: reports how far it is, times calls, and watches its memory.

Of third-party packages only NumPy, so that it runs beside TensorFlow as beside torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import pathlib
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclasses.dataclass(frozen=True)
class Repetitions:
    """How often a call is timed: until both minima are reached, but not beyond `longest` seconds; once at least."""

    count: int = 5
    shortest: float = 2.0
    longest: float = 30.0


class Report:
    """A JSON file that says at any moment what is known; so a process that is killed has said how far it was."""

    def __init__(self, path: pathlib.Path) -> None:
        """Writes to `path`, which is always whole."""
        self._path = path
        self._facts: dict[str, Any] = {}

    def __call__(self, **facts: Any) -> None:
        """Adds to what is known."""
        self._facts |= facts
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._facts))
        os.replace(new, self._path)


def run_worker(work: Callable[[Mapping[str, Any], Report], None], argv: list[str]) -> int:
    """Runs `work(task, report)` with the task that the command line holds as JSON, and returns the exit code.

    An exception goes into the report, as one line, and onto standard error.
    """
    (text,) = argv[1:]
    task = json.loads(text)
    report = Report(pathlib.Path(task["report"]))
    report(phase="start")
    _die_before_others()
    try:
        work(task, report)
    except Exception as error:  # whatever a contender does wrong belongs in the table
        traceback.print_exc()
        first_line = str(error).strip().partition("\n")[0]
        report(error=f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__)
        return 1
    report(phase="done")
    return 0


def measure(call: Callable[[], np.ndarray], report: Report, repetitions: Repetitions) -> np.ndarray:
    """Times `call` and returns its result.

    Reports `median_seconds`, `min_seconds` and `max_seconds` of `calls` calls, without the first two, which compile and
    warm up (the second counts if it alone takes longer than all may); `compile_seconds`, of the first call minus a
    later one; `peak_bytes`, how far the resident memory grew above what it was before the first call; and
    `later_peak_bytes`, the same after the first call.
    """
    gc.collect()
    _return_freememory()
    before = memory("VmRSS")
    report(phase="first call")
    forget_peak()
    first, result = timed(call)
    peak = memory("VmHWM")
    report(phase="later calls", first_call_seconds=first)
    _return_freememory()
    forget_peak()
    warm, result = timed(call)
    seconds = [warm] if warm > repetitions.longest else []
    while not seconds or (
        (len(seconds) < repetitions.count or sum(seconds) < repetitions.shortest) and sum(seconds) < repetitions.longest
    ):
        elapsed, result = timed(call)
        seconds.append(elapsed)
    later_peak = memory("VmHWM")
    median = statistics.median(seconds)
    report(
        median_seconds=median,
        min_seconds=min(seconds),
        max_seconds=max(seconds),
        calls=len(seconds),
        compile_seconds=max(0.0, first - median),
        peak_bytes=max(0, max(peak, later_peak) - before),
        later_peak_bytes=max(0, later_peak - before),
    )
    return result


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, resident now, or VmHWM, the most that were since the peak was last forgotten."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"expected {field} in /proc/self/status")


def forget_peak() -> None:
    """Lets the kernel count the peak of resident memory anew (proc(5), clear_refs)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _return_freememory() -> None:
    """Gives the allocator's free memory back; else what was used before would hide what is used next."""
    ctypes.CDLL(None).malloc_trim(0)


def _die_before_others() -> None:
    """Lets the system end this process with the benchmark, and when memory runs out before anybody's work."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
