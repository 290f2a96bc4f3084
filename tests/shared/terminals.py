"""A terminal in memory, and what it shows."""

import io
import re
import time


class Terminal(io.StringIO):
    def isatty(self):
        return True


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def shown_soon(stream, pattern):
    """It is written a few times a second."""
    until = time.monotonic() + 10
    while not re.search(pattern, plain(stream.getvalue())):
        assert time.monotonic() < until, stream.getvalue()
        time.sleep(0.02)
