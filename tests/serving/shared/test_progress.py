"""The line that shows how far a call is."""

import io

import pytest

from serving.shared.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, enabled, seconds):
    """Four requests that take `seconds` each."""
    now = [0.0]
    progress = Progress("kernel 8 × 8", 4, enabled, stream, lambda: now[0])
    for _ in range(4):
        now[0] += seconds
        progress.advance()
    progress.close()
    return stream.getvalue()


def test_long_calls_on_a_terminal():
    text = show(Terminal(), None, 10.0)
    assert "kernel 8 × 8: 1/4 requests, 10 s, about 30 s left" in text
    assert text.endswith("\r")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("stream", "enabled", "seconds"), [(Terminal, None, 0.1), (io.StringIO, None, 10.0), (Terminal, False, 10.0)]
)
def test_shows_nothing(stream, enabled, seconds):
    assert show(stream(), enabled, seconds) == ""


def test_lines_elsewhere_if_asked_for():
    assert show(io.StringIO(), True, 0.1).splitlines()[0] == "kernel 8 × 8: 1/4 requests, 0 s, about 0 s left"
