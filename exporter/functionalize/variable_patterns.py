"""Chooses variables by glob patterns on their paths."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from exporter.errors import ExportError

_SHOWN = 8  # paths in an error message


def select(paths: Sequence[str], patterns: str | Sequence[str]) -> list[str]:
    """The paths that match any positive pattern and no "!" pattern, in their order.

    Only "!" patterns: all the others. ExportError if a pattern matches nothing, or nothing is left.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    unmatched = [p for p in patterns if not any(fnmatchcase(path, p.removeprefix("!")) for path in paths)]
    if unmatched:
        raise ExportError(
            "Expected every pattern of `trainable` to match a trainable variable; "
            + "; ".join(f"{pattern!r} matches none{_nearest(pattern, paths)}" for pattern in unmatched)
            + f". The trainable variables are {_short_list(paths)}."
        )
    positive = [p for p in patterns if not p.startswith("!")] or ["*"]
    negative = [p.removeprefix("!") for p in patterns if p.startswith("!")]
    chosen = [
        path
        for path in paths
        if any(fnmatchcase(path, p) for p in positive) and not any(fnmatchcase(path, p) for p in negative)
    ]
    if not chosen:
        raise ExportError(
            f"Expected the patterns of `trainable` to leave at least one variable, received {patterns}, which exclude "
            f"all of {_short_list(paths)}."
        )
    return chosen


def _nearest(pattern: str, paths: Sequence[str]) -> str:
    wanted = pattern.strip("!*")
    nearest = max(paths, key=lambda path: difflib.SequenceMatcher(None, wanted, path).ratio())
    return f" (nearest path: {nearest!r}; '*' matches any part of a path)"


def _short_list(paths: Sequence[str]) -> str:
    shown = ", ".join(repr(path) for path in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
