"""How far a long call is, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_PATIENCE = 2.0  # seconds; what is done by then shows nothing
_LINES = 10.0  # seconds between lines of a file


class Progress:
    """A line that is written over and over, and removed at the end."""

    def __init__(
        self,
        title: str,
        total: int,
        enabled: bool | None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "requests",
    ) -> None:
        """Shows nothing yet.

        Args:
          title: what is done: "kernel 2000 × 2000".
          total: number of units.
          enabled: whether to show it; None: on a terminal, from a few seconds on.
          stream: standard error by default.
          clock: seconds.
          unit: what is counted.
        """
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._start = clock, clock()
        self._title, self._total, self._done, self._unit = title, total, 0, unit
        self._on_terminal = self._stream.isatty()
        self._enabled = (self._on_terminal and total > 1) if enabled is None else enabled
        self._patience = _PATIENCE if enabled is None else 0.0
        self._width = 0
        self._next_line = 0.0

    def advance(self, count: int = 1) -> None:
        """So many more units are done."""
        self._done += count
        seconds = self._clock() - self._start
        if not self._enabled or seconds < self._patience:
            return
        left = seconds * (self._total - self._done) / self._done
        done = f"{self._title}: {self._done:,}/{self._total:,} {self._unit}"
        line = f"{done}, {_duration(seconds)}, about {_duration(left)} left"
        if not self._on_terminal and seconds < self._next_line and self._done < self._total:
            return
        self._next_line = seconds + _LINES
        self._show(line)

    def close(self) -> None:
        """Removes the line."""
        if self._width and self._on_terminal:
            self._show("")
            self._stream.write("\r")
            self._stream.flush()

    def _show(self, line: str) -> None:
        if self._on_terminal:
            self._stream.write(f"\r{line:<{self._width}}")
            self._width = max(self._width, len(line))
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    """In the unit that people would take."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
