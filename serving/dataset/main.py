"""Computes the kernel or the features of whole data sets, on this machine's cores or on a Dask cluster.

ntk-dataset kernel   --export=BASE_DIR --data=DATA [--data2=DATA] --output=OUT.zarr [--scheduler=ADDRESS | --workers=N]
ntk-dataset features --export=BASE_DIR --data=DATA --output=OUT.zarr [--scheduler=ADDRESS | --workers=N]

DATA is a .npz file, a .zarr group, TFRecord files of tf.train.Example ('train-*.tfrecord'), or
package.module:callable that returns arrays by name: the model's inputs by their names (x for one), optionally y and id.
OUT.zarr is a Zarr group with kernel or features, id and y. After an interruption the same command computes only what is
missing. Its path is the last line of standard output.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags

from serving.dataset.errors import DatasetError
from serving.shared.byte_sizes import bytes_of_text
from serving.shared.command_line import CommandLine, say
from serving.shared.interruption import show_termination_as_interrupt
from serving.shared.suggest import did_you_mean

if TYPE_CHECKING:
    from serving.dataset.summary import Summary

_FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=_FLAGS)
_EXPORT = _string("export", None, "Model base directory of an export, whose newest version is asked, or a version.")
_DATA = _string("data", None, "Examples: .npz, .zarr, TFRecord files, or package.module:callable.")
_DATA2 = _string("data2", None, "Others for the kernel's columns; without it the kernel is symmetric and costs half.")
_OUTPUT = _string("output", None, "The Zarr group to write, or to go on with.")
_SCHEDULER = _string("scheduler", None, "Address of a Dask scheduler (tcp://HOST:8786), whose workers share the disk.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes on this machine; one for each core by default.", lower_bound=1, flag_values=_FLAGS
)
_MEMORY = _string("memory", "2GiB", "Of one worker: how large the tiles are.")
_WAIT = flags.DEFINE_float("wait", 300.0, "Seconds until the scheduler must have a worker.", 0.1, flag_values=_FLAGS)
_COMMAND = CommandLine("ntk-dataset", __doc__, __name__, _FLAGS)
_KINDS = {"kernel": "ntk", "features": "ntk_features"}  # and the signature that each needs
_EXTRA = "ntk-exporter[dataset]"


def run() -> None:
    """Runs the command with the arguments of the process, and ends the process with its exit code.

    0: the store is complete. 1: an error. 2: wrong usage. 128 + number of the signal that ended it.
    """
    app.run(main, flags_parser=_COMMAND.parse)


def main(argv: Sequence[str]) -> int:
    """Does as the parsed flags say, and returns the exit code; `argv` holds what was no flag: what to compute."""
    show_termination_as_interrupt()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of the workers too

    def work() -> None:
        say("computed", str(_run(_checked(argv[1:]))))
        print(_OUTPUT.value, flush=True)

    return _COMMAND.carry_out(work, DatasetError, hint="; the same command goes on")


def _run(kind: str) -> Summary:
    try:
        from serving.dataset.engine import Workers
        from serving.dataset.features import write_features
        from serving.dataset.kernel import write_kernel
    except ModuleNotFoundError as error:
        raise DatasetError(f"Expected the package {error.name}, found none: pip install '{_EXTRA}'.") from error
    from serving.dataset.export import find_export
    from serving.dataset.prepared import prepare

    export = find_export(_EXPORT.value, _KINDS[kind])
    say("export", f"{export.path}: {export.manifest['model']}")
    rows = prepare(_DATA.value, export, say)
    workers = Workers(_SCHEDULER.value, _WORKERS.value, _WAIT.value)
    output = pathlib.Path(_OUTPUT.value).expanduser()
    if kind == "features":
        return write_features(export, rows, output, workers, bytes_of_text(_MEMORY.value) or 0, say)
    columns = prepare(_DATA2.value, export, say) if _DATA2.value else None
    return write_kernel(export, rows, columns, output, workers, bytes_of_text(_MEMORY.value) or 0, say)


def _checked(positional: Sequence[str]) -> str:
    """Returns what to compute.

    Raises:
      UsageError: with all that is wrong with the arguments.
    """
    problems = []
    kind = positional[0] if positional else ""
    if kind not in _KINDS:
        received = f"{kind!r}{did_you_mean(kind, _KINDS)}" if kind else "neither"
        problems.append(f"expected kernel or features first, received {received}")
    problems += [f"unexpected argument {argument!r}: all others are flags" for argument in positional[1:]]
    required = {"export": _EXPORT, "data": _DATA, "output": _OUTPUT}
    problems += [f"--{name} is missing" for name, flag in required.items() if not flag.value]
    if _DATA2.value and kind == "features":
        problems.append("--data2 is of kernels: features are of one data set")
    if _SCHEDULER.value and _WORKERS.value:
        problems.append("expected --scheduler or --workers, received both: a cluster has workers of its own")
    if _OUTPUT.value and not _OUTPUT.value.rstrip("/").endswith(".zarr"):
        problems.append(f"--output: expected a name that ends in .zarr, received {_OUTPUT.value!r}")
    if not bytes_of_text(_MEMORY.value):
        problems.append(f"--memory: expected bytes such as 2GiB, received {_MEMORY.value!r}")
    if problems:
        raise app.UsageError("\n".join(problems))
    return kind


if __name__ == "__main__":
    run()
