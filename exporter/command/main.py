"""Exports the neural tangent kernel of a model as a SavedModel.

ntk-export --model=MODEL --config=CONFIG --output=BASE_DIR [--set=KEY=VALUE ...]

MODEL is a .keras file, an .h5 file, a SavedModel directory (DIR or DIR:function), or package.module:callable.
The new version's directory, BASE_DIR/1, BASE_DIR/2, ..., is the last line of standard output.
"""

import contextlib
import gc
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

from absl import app, flags, logging

from exporter.command.terminal import ConsoleProgress
from exporter.config import load_config
from exporter.errors import ExportError
from exporter.load import locate_model
from serving.shared.command_line import CommandLine, Group
from serving.shared.interruption import show_termination_as_interrupt
from serving.shared.quiet import silent_stderr, without_garbage_collection
from serving.shared.terminal import console_of

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "The model: see above.", flag_values=_FLAGS)
_CONFIG = flags.DEFINE_string(
    "config", None, "YAML file with the configuration; all defaults without it.", flag_values=_FLAGS
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Model base directory, to which the next version is added.", flag_values=_FLAGS
)
_SET = flags.DEFINE_multi_string(
    "set", [], "Overrides a key of the configuration: --set=ntk.trace_axes=[]", flag_values=_FLAGS
)
_SAFE_MODE = flags.DEFINE_bool(
    "safe_mode", True, "Refuse model files that hold Python code (Lambda layers).", flag_values=_FLAGS
)
_BUNDLE = flags.DEFINE_bool(
    "bundle", True, "Also write what a deployment needs into the base directory: see ntk-bundle.", flag_values=_FLAGS
)
_EXPLAIN = flags.DEFINE_bool("explain", False, "Show what would be exported, and write nothing.", flag_values=_FLAGS)

_COMMAND = CommandLine(
    "ntk-export",
    __doc__,
    __name__,
    _FLAGS,
    logging.ERROR,
    groups=(
        Group(
            "Model and configuration",
            dict.fromkeys(("model", "config", "set"), ""),
            "ntk-export --model=model.keras --config=ntk.yaml --set=ntk.trace_axes=[] --output=kernels",
        ),
        Group(
            "Output",
            dict.fromkeys(("output", "bundle"), ""),
            "ntk-export --model=package.module:build --output=kernels --nobundle",
        ),
        Group(
            "Checks",
            dict.fromkeys(("explain", "safe_mode"), ""),
            "ntk-export --model=model.keras --explain --set=export.verify.examples=16",
        ),
        Group(
            "Terminal",
            {"verbosity": "1 shows tracebacks and the libraries' logs; NO_COLOR=1 in the environment no colours."},
            "version=$(NO_COLOR=1 ntk-export --model=model.keras --output=kernels --verbosity=1 | tail -n 1)",
        ),
    ),
)


def run() -> None:
    """Runs the command with the arguments of the process, and ends the process with its exit code.

    0: the SavedModel was written and verified (or explained). 1: an error. 2: wrong usage. 128 + number of the signal
    that ended it: 130 SIGINT, 143 SIGTERM.
    """
    app.run(main, flags_parser=_COMMAND.parse)


def main(argv: Sequence[str]) -> int:
    """Exports as the parsed flags say, and returns the exit code; `argv` holds what was no flag."""
    verbose = flags.FLAGS.verbosity > 0
    show_termination_as_interrupt()
    if not verbose:
        _keep_libraries_quiet()
    return _COMMAND.carry_out(lambda: _export(*_checked(argv[1:]), verbose), ExportError)


def _export(model_name: str, output: pathlib.Path | None, verbose: bool) -> None:
    """Exports to `output`, or explains if it is None."""
    ntk, export = load_config(pathlib.Path(_CONFIG.value).expanduser() if _CONFIG.value else None, _SET.value or ())
    load = locate_model(model_name, safe_mode=bool(_SAFE_MODE.value))
    progress = ConsoleProgress()
    with progress.stage("load") as note, without_garbage_collection():
        note(model_name)
        _import_tensorflow(verbose)
        model = load()
        from exporter.export import explain, export_savedmodel
    gc.freeze()  # Modules and the model stay, and what traces make mostly does: choosing and lowering take 8 % less.
    gc.set_threshold(50_000, 20, 100)
    if output is None:
        _show(explain(model, ntk, export))
        return
    path = export_savedmodel(model, output, ntk, export, progress=progress).path
    if _BUNDLE.value:
        with progress.stage("bundle") as note:
            note(_bundle(output))
    print(path, flush=True)


def _show(explanation: object) -> None:
    """In colour on a terminal, where its lines may be shorter."""
    if sys.stdout.isatty():
        console_of(sys.stdout).print(explanation)
    else:
        print(explanation, flush=True)


def _bundle(base_dir: pathlib.Path) -> str:
    """Writes the bundle, and says where it is; the version stands whatever becomes of that."""
    from serving.bundle.batching import BatchingError
    from serving.bundle.contents import BundleError
    from serving.bundle.files import default_options, write_bundle
    from serving.shared.exports import ManifestError

    try:
        bundle = write_bundle(base_dir, default_options(base_dir))
        kept = (f", {name} kept as it was changed{f', but {why}' * bool(why)}" for name, why in bundle.kept.items())
        return str(bundle.directory) + "".join(kept)
    except (BundleError, BatchingError, ManifestError, OSError) as error:
        return f"not written: {error}"


def _checked(positional: Sequence[str]) -> tuple[str, pathlib.Path | None]:
    """Returns model and output, None to explain.

    Raises:
      UsageError: with all arguments that are no flags, and all flags that are missing.
    """
    problems = [f"unexpected argument {argument!r}: all arguments are flags" for argument in positional]
    model, output = _MODEL.value or "", _OUTPUT.value or ""
    if not model:
        problems.append("--model is missing: expected a file, a SavedModel directory, or package.module:callable")
    if not output and not _EXPLAIN.value:
        problems.append("--output is missing: expected a model base directory (--explain needs none)")
    if problems:
        raise app.UsageError("\n".join(problems))
    return model, None if _EXPLAIN.value else pathlib.Path(output).expanduser()


def _keep_libraries_quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")


def _import_tensorflow(verbose: bool) -> None:
    """Imports TensorFlow, set up for an export."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # The export computes nothing that needs an accelerator.
    with contextlib.nullcontext() if verbose else silent_stderr():
        import tensorflow  # noqa: F401  # quietly, before all that need it
