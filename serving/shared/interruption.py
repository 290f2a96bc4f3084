"""Signals that end a command, as exceptions."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from typing import Any

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)
_SOON = 0.05  # seconds, after which a finalizer has most likely ended


class Terminated(KeyboardInterrupt):
    """The process was asked to end. Like Ctrl-C it is not taken for an error by code in between."""

    def __init__(self, number: int) -> None:
        """By the signal of this number."""
        super().__init__()
        self.number = number


def show_termination_as_interrupt() -> None:
    """Makes SIGTERM and SIGHUP exceptions, so that what was begun is removed; a second one is ignored meanwhile.

    Where Python cannot raise an exception, in a finalizer or a callback of native code, it reports the exception and
    goes on: that is told by its hook, and the signal sent again.
    """
    before = sys.unraisablehook

    def handle(number: int, frame: types.FrameType | None) -> None:
        for ignored in _NUMBERS:
            signal.signal(ignored, signal.SIG_IGN)
        raise Terminated(number)

    def again(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Terminated):
            before(unraisable)
            return
        number = unraisable.exc_value.number
        signal.signal(number, handle)
        threading.Timer(_SOON, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = again

    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, handle)
