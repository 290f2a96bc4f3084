"""Stages of an export shown as they run: one line each, with a detail and the time it took."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from exporter.progress import Note

_NAME_WIDTH = 15
_DETAIL_WIDTH = 54


class ConsoleProgress:
    """Writes a line per stage when the stage has ended; on a terminal the running stage is shown too."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Writes to `stream`, standard output by default."""
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = self._stream.isatty()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Note]:
        """Runs the body, and writes the stage's name, its last note and its seconds."""
        detail = ""

        def note(text: str) -> None:
            nonlocal detail
            detail = " ".join(text.split())
            self._show_running(f"{name:<{_NAME_WIDTH}} {detail}")

        self._show_running(f"{name:<{_NAME_WIDTH}} ...")
        start = time.monotonic()
        try:
            yield note
        except BaseException:
            self._finish(name, f"failed: {detail}" if detail else "failed", time.monotonic() - start)
            raise
        self._finish(name, detail, time.monotonic() - start)

    def _show_running(self, line: str) -> None:
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1  # A full line would wrap, and could not be overwritten.
            self._write(f"\r{line[:width]:<{width}}")

    def _finish(self, name: str, detail: str, seconds: float) -> None:
        if self._is_terminal:
            self._show_running("")
            self._write("\r")
        self._write(f"{name:<{_NAME_WIDTH}} {detail:<{_DETAIL_WIDTH}} {seconds:7.1f} s\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
