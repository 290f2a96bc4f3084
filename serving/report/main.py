"""Writes one self-contained HTML page about an export and a data set.

ntk-report --export=BASE_DIR --data=DATA [--answers=ANSWERS_DIR [--references=DATA]] --output=report.html

The kernel as a heat map, its spectrum and effective dimension, alignment with the targets, each layer's share, nearest
and supporting examples, accuracy and calibration, time and memory. DATA is a .npz file, a .zarr group, TFRecord files
of tf.train.Example ('train-*.tfrecord'), or package.module:callable that returns arrays by name: the model's inputs by
their names (x for one), optionally y and id. The page's path is the last line of standard output.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import time
from collections.abc import Sequence

from absl import app, flags

from serving.dataset.errors import DatasetError
from serving.shared.command_line import CommandLine, say
from serving.shared.interruption import show_termination_as_interrupt

EXAMPLES = 2000

_FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=_FLAGS)
_EXPORT = _string("export", None, "Model base directory of an export, whose newest version is asked, or a version.")
_DATA = _string("data", None, "Examples: .npz, .zarr, TFRecord files, or package.module:callable.")
_ANSWERS = _string("answers", None, "Base directory of answers that ntk-fit wrote, or a version: predictions too.")
_REFERENCES = _string(
    "references", None, "Data that the answers were fitted to, to show examples of it; --data by default."
)
_OUTPUT = _string("output", None, "The page to write; what is there is replaced.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", EXAMPLES, "The page is about so many at most, drawn at random.", lower_bound=1, flag_values=_FLAGS
)
_COMMAND = CommandLine("ntk-report", __doc__, __name__, _FLAGS)
_EXTRA = "ntk-exporter[report]"


def run() -> None:
    """Runs the command with the arguments of the process, and ends the process with its exit code.

    0: the page is written. 1: an error. 2: wrong usage. 128 + number of the signal that ended it.
    """
    app.run(main, flags_parser=_COMMAND.parse)


def main(argv: Sequence[str]) -> int:
    """Does as the parsed flags say, and returns the exit code; `argv` holds what was no flag."""
    show_termination_as_interrupt()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    def work() -> None:
        _check(argv[1:])
        _write()
        print(_OUTPUT.value, flush=True)

    return _COMMAND.carry_out(work, DatasetError)


def _write() -> None:
    from serving.report.errors import ReportError
    from serving.report.page import to_html, write
    from serving.report.report import Inputs, make_page

    if importlib.util.find_spec("plotly") is None:
        raise ReportError(f"Expected the package plotly, found none: pip install '{_EXTRA}'.")
    output = pathlib.Path(_OUTPUT.value).expanduser().absolute()
    if not output.parent.is_dir():
        raise ReportError(f"Expected a directory {str(output.parent)!r} to write {output.name} into, found none.")
    inputs = Inputs(_EXPORT.value, _DATA.value, _ANSWERS.value, _EXAMPLES.value, _REFERENCES.value)
    page = make_page(inputs, say)
    start = time.monotonic()
    text = to_html(page)
    write(output, text)
    size = len(text.encode()) / 2**20
    say("page", f"{len(page.sections)} sections, {size:.1f} MiB, {time.monotonic() - start:.1f} s")


def _check(positional: Sequence[str]) -> None:
    """Raises a UsageError with all that is wrong with the arguments."""
    problems = [f"unexpected argument {argument!r}: all are flags" for argument in positional]
    required = {"export": _EXPORT, "data": _DATA, "output": _OUTPUT}
    problems += [f"--{name} is missing" for name, flag in required.items() if not flag.value]
    if _REFERENCES.value and not _ANSWERS.value:
        problems.append("--references is of --answers, which are not given")
    if _OUTPUT.value and not _OUTPUT.value.endswith((".html", ".htm")):
        problems.append(f"--output: expected a name that ends in .html, received {_OUTPUT.value!r}")
    if problems:
        raise app.UsageError("\n".join(problems))


if __name__ == "__main__":
    run()
