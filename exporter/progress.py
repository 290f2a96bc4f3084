"""Whoever is told what an export is doing."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Note(Protocol):
    """Sets the detail that the stage's line shows; a later call replaces it."""

    def __call__(self, detail: str, done: int = 0, total: int = 0, /) -> object:
        """Shows the detail, and how much is done of how much; 0 of 0 if that is not known.

        Another total, or less that is done, begins something new.
        """


class Progress(Protocol):
    """Whoever is told what an export is doing: `with progress.stage("load") as note: ...; note("a detail")`."""

    def stage(self, name: str) -> AbstractContextManager[Note]:
        """Runs the body as the stage of that name; an exception passes through."""


def silent(detail: str, done: int = 0, total: int = 0, /) -> None:
    """A note that nobody reads."""


class SilentProgress:
    """Shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Note]:
        """Runs the body."""
        yield silent
