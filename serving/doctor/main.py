"""Says what is wrong with an export, or with a server of one.

ntk-doctor PATH|ADDRESS [--model_name=NAME] [--timeout=SECONDS]

PATH is a version's directory, or a model base directory, whose newest version is taken. ADDRESS is host:port for gRPC
or http://host:port for REST. Prints a table; the exit code is 0 if nothing in it is wrong.
"""

import os
import pathlib
import re
import shutil
import sys
from collections.abc import Sequence

from absl import app, flags

from serving.doctor.report import Check, Outcome, bad, show
from serving.shared.command_line import CommandLine
from serving.shared.progress import waiting

_FLAGS = flags.FlagValues()
_MODEL_NAME = flags.DEFINE_string("model_name", "default", "The model's name on the server.", flag_values=_FLAGS)
_TIMEOUT = flags.DEFINE_float(
    "timeout", 30.0, "Seconds to wait for the server to have the model.", lower_bound=0.0, flag_values=_FLAGS
)
_COMMAND = CommandLine("ntk-doctor", __doc__, __name__, _FLAGS)


def run() -> None:
    """Runs the command with the arguments of the process: 0 nothing is wrong, 1 something is, 2 wrong usage."""
    app.run(main, flags_parser=_COMMAND.parse)


def main(argv: Sequence[str]) -> int:
    """Checks what the arguments name, and returns the exit code."""
    if len(argv) != 2:
        return _COMMAND.usage(f"expected one PATH or ADDRESS, received {', '.join(argv[1:]) or 'none'}")
    with waiting(f"check {argv[1]}"):
        checks = _check(argv[1])
    show(checks, sys.stdout, shutil.get_terminal_size((100, 24)).columns)
    return int(any(check.outcome is Outcome.BAD for check in checks))


def _check(target: str) -> list[Check]:
    path = pathlib.Path(target).expanduser()
    if not path.exists() and re.fullmatch(r"https?://.+|(grpcs?://)?[^/]+:\d+", target):
        from serving.client import Client
        from serving.doctor.server import check_server

        with Client(target, model=_MODEL_NAME.value, deadline=600.0) as client:
            return check_server(client, _TIMEOUT.value)
    from serving.doctor import saved_model

    version = saved_model.find_version(path)
    if version is None:
        return [
            bad("export", f"expected a version's directory, a model base directory or host:port, received {target}")
        ]
    for name in saved_model.EXPORT_ONLY:  # importing one is an error from here on
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    from serving.shared.quiet import import_tensorflow_quietly

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without GPU is no error
    import_tensorflow_quietly()
    return saved_model.check_saved_model(version)


if __name__ == "__main__":
    run()
