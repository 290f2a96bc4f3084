"""Writes what a deployment of exported kernels needs beside the versions of a model base directory.

ntk-bundle BASE_DIR [--model_name=NAME] [--cpus=N] [--gpu] [--batching]

BASE_DIR/serving gets models.config, serve.sh (runs tensorflow_model_server here), compose.yaml and kubernetes.yaml,
made for the newest version. With --batching also a second model NAME_rowwise, whose requests TF Serving may join.
Flags that are not given are as they were when the bundle was last written, and files that were changed since stay.
The directory is the last line of standard output.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from serving.bundle.batching import BatchingError
from serving.bundle.contents import BundleError
from serving.bundle.files import default_options, write_bundle
from serving.shared.command_line import CommandLine
from serving.shared.exports import ManifestError
from serving.shared.quiet import import_tensorflow_quietly

_FLAGS = flags.FlagValues()
_MODEL_NAME = flags.DEFINE_string(
    "model_name", None, "Name by which clients ask for the model; the base directory's by default.", flag_values=_FLAGS
)
_CPUS = flags.DEFINE_integer("cpus", None, "Cores for the server, 4 by default.", flag_values=_FLAGS)
_GPU = flags.DEFINE_bool("gpu", None, "Whether the server has an NVIDIA GPU.", flag_values=_FLAGS)
_BATCHING = flags.DEFINE_bool(
    "batching",
    None,
    "Also serve ntk_diagonal and forward as a model whose requests are joined.",
    flag_values=_FLAGS,
)
_COMMAND = CommandLine("ntk-bundle", __doc__, __name__, _FLAGS)


def run() -> None:
    """Runs the command with the arguments of the process: 0 written, 1 an error, 2 wrong usage."""
    app.run(main, flags_parser=_COMMAND.parse)


def main(argv: Sequence[str]) -> int:
    """Writes the bundle as the parsed flags say, and returns the exit code; `argv` holds what was no flag."""
    if len(argv) != 2:
        return _COMMAND.usage(f"expected one base directory, received {', '.join(argv[1:]) or 'none'}")
    base_dir = pathlib.Path(argv[1]).expanduser().absolute()
    try:
        flag = {"model_name": _MODEL_NAME, "cpus": _CPUS, "gpu": _GPU, "batched": _BATCHING}
        given: dict[str, Any] = {name: holder.value for name, holder in flag.items() if holder.value is not None}
        options = dataclasses.replace(default_options(base_dir), **given)
        if options.batched:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without GPU is no error
            import_tensorflow_quietly()
        bundle = write_bundle(base_dir, options)
        for name, harm in bundle.kept.items():
            but = f". But {harm}" if harm else ""
            print(
                f"kept {bundle.directory / name}, which was changed; remove it to have it written{but}", file=sys.stderr
            )
        print(bundle.directory)
    except (BundleError, BatchingError, ManifestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run()
