"""What a page consists of, and how its numbers are written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from serving.report.figures import Figure


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers for copying: what they are, names of columns, rows of cells, and whether they are shown unasked."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    shown: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
      key: of its place in the page.
      title: a word or two.
      sentence: what there is to see, as plain text.
      figures: each with what it shows, in a few words; those of one section stand side by side where there is room.
      body: HTML that follows.
      notes: how it was computed, what was left out and why, as plain text.
      tables: its numbers.
    """

    key: str
    title: str
    sentence: str
    figures: Sequence[tuple[str, Figure]] = ()
    body: str = ""
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()


def percent(part: float, digits: int = 1) -> str:
    """A part of 1."""
    return "undefined" if math.isnan(part) else f"{part:.{digits}%}"


def number(value: float, digits: int = 4) -> str:
    """With so many significant digits."""
    if not math.isfinite(value):
        return "undefined"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 10 ** max(digits, 6):
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:.{digits - 1}e}"


def counted(count: int, what: str) -> str:
    """A number of things: "1 example", "1,297 examples"."""
    return f"{count:,} {what if count == 1 else _plural(what)}"


def _plural(what: str) -> str:
    if what.endswith("s"):
        return f"{what}es"
    return f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"


def mebibytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
