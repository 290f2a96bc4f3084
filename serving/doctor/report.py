"""What was checked and what came of it, as one table."""

from __future__ import annotations

import dataclasses
import enum
import textwrap
from collections.abc import Sequence
from typing import TextIO

from serving.shared.terminal import console_of


class Outcome(enum.Enum):
    """What came of a check; the value is what the table shows."""

    GOOD = "ok"
    NOTE = "note"  # nothing is wrong, but it could be better, or it could not be found out
    BAD = "WRONG"


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table: what was checked, what came of it, and what was seen or is to be done."""

    name: str
    outcome: Outcome
    detail: str


def good(name: str, detail: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, Outcome.GOOD, detail)


def note(name: str, detail: str) -> Check:
    """A check that found something worth knowing."""
    return Check(name, Outcome.NOTE, detail)


def bad(name: str, detail: str) -> Check:
    """A check that found something wrong."""
    return Check(name, Outcome.BAD, detail)


def table(checks: Sequence[Check], width: int) -> str:
    """The checks as lines of at most `width` characters, long details wrapped under themselves."""
    names = max(len(check.name) for check in checks)
    outcomes = max(len(check.outcome.value) for check in checks)
    lines = []
    for check in checks:
        start = f"{check.name:<{names}}  {check.outcome.value:<{outcomes}}  "
        detail = textwrap.wrap(check.detail, max(width - len(start), 30)) or [""]
        lines += [start + detail[0], *(" " * len(start) + line for line in detail[1:])]
    return "\n".join(line.rstrip() for line in lines)


_STYLES = {Outcome.GOOD: "green", Outcome.NOTE: "yellow", Outcome.BAD: "bold red"}


def show(checks: Sequence[Check], stream: TextIO, width: int) -> None:
    """Writes the table, in colour on a terminal."""
    if not stream.isatty():
        stream.write(table(checks, width) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    coloured = Table.grid(padding=(0, 2, 0, 0))
    coloured.add_column(no_wrap=True, style="bold")
    coloured.add_column(no_wrap=True)
    coloured.add_column(overflow="fold")
    for check in checks:
        outcome = Text(check.outcome.value, _STYLES[check.outcome])
        coloured.add_row(Text(check.name), outcome, Text(check.detail))
    console_of(stream, width).print(coloured)
