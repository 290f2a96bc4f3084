"""Stages of an export shown as they run: one line each, with a detail and the time it took."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from exporter.progress import Note, silent
from serving.shared.terminal import console_of

if TYPE_CHECKING:
    from serving.shared.live import LiveLine

_NAME_WIDTH = 15
_DETAIL_WIDTH = 54


class ConsoleProgress:
    """Writes a line per stage when the stage has ended; on a terminal the running stage is shown too."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Writes to `stream`, which also shows the running stage if it is a terminal.

        By default that is standard output, and the running stage is shown on standard error; or on standard output, if
        only that is a terminal.
        """
        self._stream = sys.stdout if stream is None else stream
        live = self._stream if stream is not None or not sys.stderr.isatty() else sys.stderr
        self._live = live if live.isatty() else None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Note]:
        """Runs the body, and writes the stage's name, its last note and its seconds."""
        last, failed, start = "", True, time.monotonic()
        try:
            with self._shown(name) as show:

                def note(detail: str, done: int = 0, total: int = 0, /) -> None:
                    nonlocal last
                    last = " ".join(detail.split())
                    show(last, done, total)

                yield note
            failed = False
        finally:
            self._finish(name, last, failed, time.monotonic() - start)

    @contextlib.contextmanager
    def _shown(self, name: str) -> Iterator[Note]:
        """Shows the running stage meanwhile."""
        if self._live is None:
            yield silent
            return
        from serving.shared.live import LiveLine

        with _own(self._live) as terminal:
            line: LiveLine = LiveLine(f"{name:<{_NAME_WIDTH - 2}}", terminal, above=self._stream.isatty())
            try:
                line.start()
                yield line.update
            finally:
                line.close()

    def _finish(self, name: str, detail: str, failed: bool, seconds: float) -> None:
        if failed:
            detail = f"failed: {detail}" if detail else "failed"
        parts = (f"{name:<{_NAME_WIDTH}}", f"{detail:<{_DETAIL_WIDTH}}", f"{seconds:7.1f} s")
        if self._stream.isatty():
            from rich.text import Text

            styles = ("bold red" if failed else "bold green", "red" if failed else "", "dim")
            line = Text(" ").join(Text(part, style) for part, style in zip(parts, styles, strict=True))
            console_of(self._stream).print(line, soft_wrap=True)
        else:
            self._stream.write(" ".join(parts) + "\n")
        self._stream.flush()


@contextlib.contextmanager
def _own(terminal: TextIO) -> Iterator[TextIO]:
    """The terminal by a file descriptor of its own: libraries are kept quiet by closing standard error's."""
    try:
        descriptor = os.dup(terminal.fileno())
    except OSError:  # a terminal in memory
        yield terminal
        return
    with open(descriptor, "w", encoding=terminal.encoding, errors="replace") as own:
        yield own
