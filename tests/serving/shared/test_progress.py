"""The line that shows how far a call is."""

import io
import re
import subprocess
import sys
import time

import pytest
from terminals import Terminal, plain, shown_soon

from serving.shared import progress as module
from serving.shared.live import LiveLine
from serving.shared.progress import Progress, waiting
from serving.shared.terminal import console_of, duration

SHOW, REMOVED = "\x1b[?25h", "\x1b[1A\x1b[2K"  # the cursor; and the line


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def show(stream, enabled, seconds, pattern=""):
    """Four requests that take `seconds` each; after the first of them the pattern is there."""
    now = [0.0]
    progress = Progress("kernel 8 × 8", 4, enabled, stream, lambda: now[0])
    for k in range(4):
        now[0] += seconds
        progress.advance()
        if k == 0 and pattern:
            shown_soon(stream, pattern)
    progress.close()
    return stream.getvalue()


def test_long_calls_on_a_terminal():
    text = show(Terminal(), None, 10.0, "kernel 8 × 8 1/4 requests .*━.* 10 s, about 30 s left")
    assert text.endswith(f"{SHOW}\r{REMOVED}")
    assert max(map(len, re.split("[\r\n]", plain(text)))) <= 100


@pytest.mark.parametrize(
    ("stream", "enabled", "seconds"), [(Terminal, None, 0.1), (io.StringIO, None, 10.0), (Terminal, False, 10.0)]
)
def test_shows_nothing(stream, enabled, seconds):
    assert show(stream(), enabled, seconds) == ""


def test_lines_elsewhere_if_asked_for():
    assert show(io.StringIO(), True, 0.1).splitlines()[0] == "kernel 8 × 8: 1/4 requests, 0 s, about 0 s left"


def test_a_first_request_that_takes_long_is_shown_before_it_has_ended(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    stream = Terminal()
    progress = Progress("kernel 8 × 8", 4, None, stream)
    shown_soon(stream, r"kernel 8 × 8 0/4 requests .*0 s")
    assert "left" not in stream.getvalue()
    progress.close()
    assert stream.getvalue().endswith(REMOVED)


def test_nothing_is_shown_after_the_end(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    stream = Terminal()
    Progress("kernel 8 × 8", 4, None, stream).close()
    time.sleep(0.1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_waiting(monkeypatch, error):
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    stream, file = Terminal(), io.StringIO()

    def wait():
        with waiting("fit", file), waiting("fit", stream):
            shown_soon(stream, "fit")
            if error:
                raise error

    if error:
        with pytest.raises(error):
            wait()
    else:
        wait()
    assert stream.getvalue().endswith(f"{SHOW}\r{REMOVED}")
    assert file.getvalue() == ""


class TestTimeLeft:
    def line(self):
        self.now = 100.0
        return LiveLine("verify", io.StringIO(), clock=lambda: self.now)

    def test_is_of_what_is_counted_now(self):
        line = self.line()
        assert line.times() == "0 s"
        self.now = 110.0
        line.update("compile")
        assert line.times() == "10 s"
        self.now = 112.0
        line.update("gradients", 1, 4)
        assert line.times() == "12 s, about 6 s left"
        self.now = 113.0
        assert line.times() == "13 s, about 5 s left"
        self.now = 118.0
        line.update("gradients", 4, 4)
        assert line.times() == "18 s, about 0 s left"
        self.now = 123.0
        line.update("gradients", 1, 4)  # of another kernel
        assert line.times() == "23 s, about 15 s left"

    def test_grows_while_nothing_comes(self):
        line = self.line()
        self.now = 101.0
        line.update("gradients", 1, 4)
        self.now = 120.0
        line.update("gradients", 1, 4)
        assert line.times() == "20 s, about 20 s left"


def test_durations():
    assert [duration(s) for s in (0.4, 119, 600, 9000)] == ["0 s", "119 s", "10 min", "2.5 h"]


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal, {}, "\x1b[31m[red] 12\x1b[0m\n"),
        (Terminal, {"NO_COLOR": "1"}, "[red] 12\n"),
        (io.StringIO, {}, "[red] 12\n"),
        (io.StringIO, {"FORCE_COLOR": "1"}, "[red] 12\n"),
    ],
)
def test_colours(monkeypatch, stream, environment, expected):
    """On a terminal only; texts are not read as markup."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = stream()
    console_of(file).print("[red] 12", style="red")
    assert file.getvalue() == expected


def test_rich_is_imported_when_it_is_needed():
    code = """
import io, sys
import serving.client.client
from serving.shared.progress import Progress
for enabled in (None, True, False):
    progress = Progress("kernel", 4, enabled, io.StringIO())
    progress.advance()
    progress.close()
print("rich" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
