"""How far a long call is, on standard error: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from serving.shared.terminal import duration

if TYPE_CHECKING:
    from serving.shared.live import LiveLine

_PATIENCE = 2.0  # seconds; what is done by then shows nothing
_LINES = 10.0  # seconds between lines of a file


class Progress:
    """A line with a bar and the time left, removed at the end."""

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
          total: number of units; 0 if they are not known.
          enabled: whether to show it; None: on a terminal, from a few seconds on.
          stream: standard error by default.
          clock: seconds.
          unit: what is counted.
        """
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._start = clock, clock()
        self._title, self._total, self._done, self._unit = title, total, 0, unit
        self._on_terminal = self._stream.isatty()
        self._enabled = (self._on_terminal and total != 1) if enabled is None else enabled
        self._patience = _PATIENCE if enabled is None else 0.0
        self._next_line = 0.0
        self._live: LiveLine | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        if self._enabled and self._on_terminal:
            self._timer = threading.Timer(self._patience, self._show)
            self._timer.daemon = True
            self._timer.start()

    def advance(self, count: int = 1) -> None:
        """So many more units are done."""
        self._done += count
        seconds = self._clock() - self._start
        if not self._enabled or seconds < self._patience:
            return
        if self._on_terminal:
            self._show()
        elif seconds >= self._next_line or self._done >= self._total:
            self._next_line = seconds + _LINES
            left = seconds * (self._total - self._done) / self._done
            self._stream.write(f"{self._title}: {self._counted}, {duration(seconds)}, about {duration(left)} left\n")
            self._stream.flush()

    def close(self) -> None:
        """Removes the line."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._enabled = False
            if self._live is not None:
                self._live.close()
                self._live = None

    @property
    def _counted(self) -> str:
        return f"{self._done:,}/{self._total:,} {self._unit}" if self._total else ""

    def _show(self) -> None:
        """Shows what is done on the terminal; called by the timer too."""
        with self._lock:
            if not self._enabled:
                return
            if self._live is None:
                from serving.shared.live import LiveLine

                self._live = LiveLine(self._title, self._stream, clock=self._clock, start=self._start)
                self._live.start()
            self._live.update(self._counted, self._done, self._total)


@contextlib.contextmanager
def waiting(title: str, stream: TextIO | None = None) -> Iterator[None]:
    """Runs the body; on a terminal it says so from a few seconds on."""
    progress = Progress(title, 0, None, stream)
    try:
        yield
    finally:
        progress.close()
