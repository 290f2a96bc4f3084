"""Signals that end a command, as exceptions."""

from __future__ import annotations

import signal
import types


class Terminated(KeyboardInterrupt):
    """The process was asked to end. Like Ctrl-C it is not taken for an error by code in between."""

    def __init__(self, number: int) -> None:
        """By the signal of this number."""
        super().__init__()
        self.number = number


def show_termination_as_interrupt() -> None:
    """Makes SIGTERM and SIGHUP exceptions, so that what was begun is removed; a second one is ignored meanwhile."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, handle)
