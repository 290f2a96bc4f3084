"""How many requests compute at the same time, and how many wait; for both protocols together."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from serving.local_server.errors import OverloadedError, deadline_exceeded

_FOREVER = float("inf")


class Admission:
    """Has places for `concurrency` computations; `queue` more requests may wait, and any further one is refused."""

    def __init__(self, concurrency: int, queue: int) -> None:
        """Both are numbers of requests."""
        self._concurrency = self._free = concurrency
        self._queue = queue
        self._admitted = 0
        self._condition = threading.Condition()

    @property
    def running(self) -> int:
        """Places that are taken."""
        return self._concurrency - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait, for a place or for a batch."""
        return max(self._admitted - self.running, 0)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request until the context ends.

        Raises:
          OverloadedError: there are as many as may be.
        """
        with self._condition:
            if self._admitted >= self._concurrency + self._queue:
                raise OverloadedError(
                    f"The server computes as many requests as it may, and {self._queue} more wait. Try again later."
                )
            self._admitted += 1
        try:
            yield
        finally:
            with self._condition:
                self._admitted -= 1

    @contextlib.contextmanager
    def place(self, deadline: float = _FOREVER) -> Iterator[None]:
        """A place to compute in, until the context ends.

        Args:
          deadline: until when the client waits, on the clock of `time.monotonic`.

        Raises:
          ServingError: DEADLINE_EXCEEDED, if the deadline comes first.
        """
        with self._condition:
            timeout = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            if not self._condition.wait_for(lambda: self._free, timeout):
                raise deadline_exceeded("Deadline exceeded while waiting to be computed.")
            self._free -= 1
        try:
            yield
        finally:
            with self._condition:
                self._free += 1
                self._condition.notify()
