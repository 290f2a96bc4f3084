"""Progress: one line per stage, on a terminal also while it runs."""

import io
import re

import pytest

from exporter.command.terminal import ConsoleProgress
from exporter.progress import SilentProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")


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


def test_terminal_shows_the_running_stage_and_overwrites_it():
    stream = Terminal()
    with ConsoleProgress(stream).stage("lower") as note:
        assert stream.getvalue() == "\r" + "lower           ...".ljust(39)
        note("x" * 100)
        assert stream.getvalue().endswith("\rlower           " + "x" * 23)
        note("cpu")
    *_, blank, last = stream.getvalue().split("\r")
    assert blank == " " * 39
    assert re.fullmatch(r"lower           cpu +0\.0 s\n", last)


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
