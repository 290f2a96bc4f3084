"""Fits answers about a reference set on an exported kernel, and writes them as a SavedModel that can be served.

ntk-fit --export=BASE_DIR --data=TRAIN --output=ANSWERS_DIR [--method=auto|exact|features] [--ridge=auto|VALUE]
        [--neighbors=10] [--scheduler=ADDRESS]

DATA is what ntk-dataset takes, with y: classes (integers or one-hot), or numbers as the network gives. The next version
below ANSWERS_DIR has the signatures predict, nearest, support, forward and ntk_features. Its path is the last line of
standard output. After an interruption the same command goes on with the features that are there.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags

from serving.answers.targets import KINDS, NETWORKS
from serving.dataset.errors import DatasetError
from serving.shared.byte_sizes import bytes_of_text
from serving.shared.command_line import CommandLine, say
from serving.shared.interruption import show_termination_as_interrupt
from serving.shared.quiet import import_tensorflow_quietly

if TYPE_CHECKING:
    from serving.answers.run import Options

_FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=_FLAGS)
_enum = functools.partial(flags.DEFINE_enum, flag_values=_FLAGS)
_EXPORT = _string("export", None, "Model base directory of an export, whose newest version is asked, or a version.")
_DATA = _string("data", None, "Reference examples with y: .npz, .zarr, TFRecord files, or package.module:callable.")
_OUTPUT = _string("output", None, "Model base directory of the answers; the next version is written.")
_METHOD = _enum(
    "method",
    "auto",
    ["auto", "exact", "features"],
    "The kernel itself, which keeps the reference examples' own features, or the random features of ntk_features; auto "
    "is exact for up to 1,000 examples that fit the memory.",
)
_RIDGE = _string("ridge", "auto", "Added to the kernel's diagonal; auto has the least leave-one-out loss.")
_NEIGHBORS = flags.DEFINE_integer("neighbors", 10, "Answers of nearest and support.", lower_bound=1, flag_values=_FLAGS)
_KEEP = flags.DEFINE_integer(
    "keep",
    None,
    "Reference examples that nearest and support know, those of the largest leverages; as many as fit the memory by "
    "default. predict needs none of them (--method=features).",
    lower_bound=1,
    flag_values=_FLAGS,
)
_MEMORY = _string("memory", "1GiB", "Of the reference examples that a server keeps.")
_TARGETS = _enum("targets", "auto", ["auto", *KINDS], "What y is.")
_NETWORK = _enum("network", "auto", ["auto", *NETWORKS], "What the network's output is.")
_HOLDOUT = _string("holdout", None, "Examples with y that were not trained on, to measure with.")
_OUTLIERS = _string("outliers", None, "Examples that are nothing like the reference, to measure novelty with.")
_SCHEDULER = _string("scheduler", None, "Address of a Dask scheduler (tcp://HOST:8786), for the features.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes on this machine; one for each core by default.", lower_bound=1, flag_values=_FLAGS
)
_WORKER_MEMORY = _string("worker_memory", "2GiB", "Of one worker.")
_WAIT = flags.DEFINE_float("wait", 300.0, "Seconds until the scheduler must have a worker.", 0.1, flag_values=_FLAGS)
_COMMAND = CommandLine("ntk-fit", __doc__, __name__, _FLAGS)
_EXTRA = "ntk-exporter[dataset]"


def run() -> None:
    """Runs the command with the arguments of the process, and ends the process with its exit code.

    0: the answers are published. 1: an error. 2: wrong usage. 128 + number of the signal that ended it.
    """
    app.run(main, flags_parser=_COMMAND.parse)


def main(argv: Sequence[str]) -> int:
    """Fits as the parsed flags say, and returns the exit code; `argv` holds what was no flag."""
    show_termination_as_interrupt()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of the workers too

    def work() -> None:
        _check(argv[1:])
        try:
            import_tensorflow_quietly()
            from serving.answers.run import Options, run_fit
        except ModuleNotFoundError as error:
            raise DatasetError(f"Expected the package {error.name}, found none: pip install '{_EXTRA}'.") from error
        print(run_fit(_options(Options), say), flush=True)

    return _COMMAND.carry_out(work, DatasetError, hint="; the same command goes on")


def _options(options: type[Options]) -> Options:
    return options(
        export=_EXPORT.value,
        data=_DATA.value,
        output=pathlib.Path(_OUTPUT.value).expanduser(),
        method=_METHOD.value,
        ridge=None if _RIDGE.value == "auto" else float(_RIDGE.value),
        neighbors=_NEIGHBORS.value,
        keep=_KEEP.value,
        memory=bytes_of_text(_MEMORY.value) or 0,
        targets=_TARGETS.value,
        network=_NETWORK.value,
        holdout=_HOLDOUT.value,
        outliers=_OUTLIERS.value,
        scheduler=_SCHEDULER.value,
        workers=_WORKERS.value,
        worker_memory=bytes_of_text(_WORKER_MEMORY.value) or 0,
        wait=_WAIT.value,
    )


def _check(positional: Sequence[str]) -> None:
    """Raises a UsageError with all that is wrong with the arguments."""
    problems = [f"unexpected argument {argument!r}: all arguments are flags" for argument in positional]
    required = {"export": _EXPORT, "data": _DATA, "output": _OUTPUT}
    problems += [f"--{name} is missing" for name, flag in required.items() if not flag.value]
    if _RIDGE.value != "auto" and not _is_positive(_RIDGE.value):
        problems.append(f"--ridge: expected auto or a number above 0, received {_RIDGE.value!r}")
    if _KEEP.value and _KEEP.value < _NEIGHBORS.value:
        problems.append(f"--neighbors: expected at most the --keep={_KEEP.value}, received {_NEIGHBORS.value}")
    if _SCHEDULER.value and _WORKERS.value:
        problems.append("expected --scheduler or --workers, received both: a cluster has workers of its own")
    for name, flag in (("memory", _MEMORY), ("worker_memory", _WORKER_MEMORY)):
        if not bytes_of_text(flag.value):
            problems.append(f"--{name}: expected bytes such as 2GiB, received {flag.value!r}")
    if problems:
        raise app.UsageError("\n".join(problems))


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


if __name__ == "__main__":
    run()
