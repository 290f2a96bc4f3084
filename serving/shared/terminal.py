"""What a terminal gets and a pipe does not: colours, and lines that are written over."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def console_of(stream: TextIO, width: int | None = None) -> Console:
    """For text in colour on a terminal, and plain text anywhere else; rich is imported here, when it is needed.

    Args:
      stream: what is written to; without colour if NO_COLOR is set.
      width: in characters; the terminal's by default.
    """
    from rich.console import Console

    return Console(
        file=stream,
        width=width,
        force_terminal=stream.isatty(),  # FORCE_COLOR would put escape codes into pipes
        force_jupyter=False,  # which would show it in place of writing it
        highlight=False,
        markup=False,
        emoji=False,
    )


def duration(seconds: float) -> str:
    """In the unit that people would take."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
