"""Whoever is told what an export is doing."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

Note = Callable[[str], None]
"""Sets the detail that the stage's line shows; a later call replaces it."""


class Progress(Protocol):
    """Whoever is told what an export is doing: `with progress.stage("load") as note: ...; note("a detail")`."""

    def stage(self, name: str) -> AbstractContextManager[Note]:
        """Runs the body as the stage of that name; an exception passes through."""


class SilentProgress:
    """Shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Note]:
        """Runs the body."""
        yield lambda detail: None
