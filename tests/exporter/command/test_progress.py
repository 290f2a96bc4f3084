"""Progress: one line per stage, on a terminal also while it runs."""

import io
import re
import subprocess
import sys

import pytest
from terminals import Terminal, plain, shown_soon

from exporter.command.terminal import ConsoleProgress
from exporter.progress import SilentProgress

HIDE, SHOW, REMOVED = "\x1b[?25l", "\x1b[?25h", "\x1b[1A\x1b[2K"  # the cursor; and the line


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_line_per_stage_with_detail_and_seconds():
    stream = io.StringIO()
    progress = ConsoleProgress(stream)
    with progress.stage("functionalize") as note:
        note("12 trainable, 4 frozen variables, 5,962 parameters")
        assert not stream.getvalue()
    with progress.stage("write"):
        pass
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"functionalize   12 trainable, 4 frozen variables, 5,962 parameters +0\.0 s", first)
    assert re.fullmatch(r"write +0\.0 s", second)
    assert len(first) == len(second)


def test_last_note_is_shown_on_one_line():
    stream = io.StringIO()
    with ConsoleProgress(stream).stage("lower") as note:
        note("first")
        note("second\n  line")
    assert re.fullmatch(r"lower           second line +0\.0 s\n", stream.getvalue())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_stage_is_shown_and_the_error_passes_through(error):
    stream = io.StringIO()

    def run(detail):
        with ConsoleProgress(stream).stage("verify") as note:
            note(detail)
            raise error

    for detail in ("", "8 examples"):
        with pytest.raises(error):
            run(detail)
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"verify          failed +0\.0 s", first)
    assert re.fullmatch(r"verify          failed: 8 examples +0\.0 s", second)


def test_terminal_shows_the_running_stage_and_removes_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with ConsoleProgress(stream).stage("lower") as note:
        shown_soon(stream, "lower")
        note("x" * 100)
        shown_soon(stream, r"lower +x{5,}…")
        assert "━" not in stream.getvalue()
        note("3 programs", 3, 12)
        shown_soon(stream, r"lower +3 .*━.*about \d+ s left")
        note("12 programs", 12, 12)
        shown_soon(stream, r"lower +12 .*━.*about 0 s left")
        note("cpu")
        shown_soon(stream, r"\r[^ ] lower +cpu +\d s(\r|$)")  # no bar any more, and the spinner goes on
        assert stream.getvalue().startswith(HIDE)
        assert SHOW not in stream.getvalue()
    live, _, last = stream.getvalue().rpartition(REMOVED)
    assert live.endswith(SHOW + "\r")
    assert re.fullmatch(r"lower           cpu +\d\.\d s\n", plain(last))
    assert last != plain(last)
    assert max(map(len, re.split("[\r\n]", plain(live)))) <= 80


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_cursor_comes_back_after_an_error(error):
    stream = Terminal()
    with pytest.raises(error), ConsoleProgress(stream).stage("verify"):
        raise error
    assert stream.getvalue().count(HIDE) == stream.getvalue().count(SHOW) == 1
    assert re.fullmatch(r"verify          failed +\d\.\d s\n", plain(stream.getvalue().rpartition(REMOVED)[2]))


def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with ConsoleProgress(stream).stage("load"):
        shown_soon(stream, "load")
    assert not re.search(r"\x1b\[(?:\d+;)*3\dm", stream.getvalue())


def test_no_escape_codes_in_a_pipe_that_asks_for_colours(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with ConsoleProgress(stream).stage("load") as note:
        note("some", 1, 2)
    assert "\x1b" not in stream.getvalue()


def test_the_running_stage_is_on_standard_error(monkeypatch):
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with ConsoleProgress().stage("load"):
        shown_soon(err, "load")
    assert re.fullmatch(r"load +0\.\d s\n", out.getvalue())
    assert err.getvalue().endswith(REMOVED)


def test_a_pipe_needs_no_rich():
    code = """
import sys
from exporter.command.main import *
from exporter.command.terminal import ConsoleProgress
import serving.client.client
with ConsoleProgress().stage("load") as note: note("detail", 1, 2)
assert "rich" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"load            detail +0\.0 s\n", done.stdout)


def test_standard_output_is_the_default(capsys):
    with ConsoleProgress().stage("load"):
        pass
    assert capsys.readouterr().out.startswith("load ")


def test_silent(capsys):
    with SilentProgress().stage("load") as note:
        note("detail")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="reason"), SilentProgress().stage("load"):
        raise ValueError("reason")
