"""Serves exported kernels over TF Serving's gRPC and REST APIs.

ntk-serve --model_base_path=BASE_DIR [--model_name=NAME] [--port=8500] [--rest_api_port=8501] [--server=auto]
          [--batching] [-- FLAGS OF tensorflow_model_server]

Starts tensorflow_model_server with the flags that the kernels need if there is one ($TF_MODEL_SERVER, on the PATH, or
as a container image that was pulled before), else the embedded server. Serves until SIGTERM or Ctrl-C, which lets
requests finish.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging

from serving.shared import batching_parameters, model_server, xla_cache
from serving.shared.addresses import from_here
from serving.shared.command_line import CommandLine
from serving.shared.exports import BUNDLE
from serving.shared.quiet import import_tensorflow_quietly
from serving.start import running, server_choice

if TYPE_CHECKING:
    from serving.local_server import ModelOptions

_FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=_FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=_FLAGS, lower_bound=0)
_BASE_PATH = _string("model_base_path", None, "Model base directory, which has the versions /1, /2, ...")
_CONFIG_FILE = _string("model_config_file", None, "Or else a ModelServerConfig in text format, as TF Serving takes it.")
_NAME = _string("model_name", "default", "By which clients ask for the model.")
_HOST = _string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 opens the server to the network, without authentication."
)
_PORT = _integer("port", model_server.GRPC_PORT, "Port of gRPC; 0 for any free one.", upper_bound=65535)
_REST_PORT = _integer("rest_api_port", model_server.REST_PORT, "Port of REST; 0 for any free one.", upper_bound=65535)
_SERVER = flags.DEFINE_enum(
    "server",
    "auto",
    ["auto", "tensorflow_model_server", "container", "embedded"],
    "What serves.",
    flag_values=_FLAGS,
)
_IMAGE = _string("image", model_server.IMAGE, "Of the container.")
_GPU = flags.DEFINE_bool("gpu", False, "Serve on GPUs (tensorflow_model_server and container).", flag_values=_FLAGS)
_XLA_CACHE = _string(
    "xla_cache",
    None,
    f"Directory in which what XLA compiled is kept for the next start, empty for none; by default "
    f"{BUNDLE}/{xla_cache.DIRECTORY} in the base directory, if that has a bundle. A container has a volume of its own.",
)
_REST_TIMEOUT = flags.DEFINE_float(
    "rest_timeout_seconds", 600.0, "Longest time until the answer to a REST request.", 0.001, flag_values=_FLAGS
)
_GRPC_THREADS = _integer("grpc_max_threads", 64, "gRPC requests at a time (tensorflow_model_server and container).")
_CONCURRENCY = _integer("max_concurrency", 0, "Requests computed at a time (embedded); 0 for one for each core.")
_QUEUE = _integer("max_queue", 256, "Requests that wait for a place beside these (embedded).")
_MESSAGE_MIB = _integer("max_message_mib", 1024, "Largest request or answer in MiB (embedded).", upper_bound=2047)
_SHUTDOWN = flags.DEFINE_float(
    "shutdown_seconds", 30.0, "Longest time for requests to finish at the end (embedded).", 0.0, flag_values=_FLAGS
)
_BATCHING = flags.DEFINE_bool(
    "batching",
    False,
    "Join requests of several clients, to models that have batching parameters of their own (answers, and what "
    "ntk-bundle --batching makes), and no others.",
    flag_values=_FLAGS,
)
_LOG_REQUESTS = flags.DEFINE_bool("log_requests", False, "Log each request (embedded).", flag_values=_FLAGS)

_COMMAND = CommandLine(
    "ntk-serve", __doc__, __name__, _FLAGS, logging.INFO, "--verbosity=-1 shows warnings and errors only."
)


def run() -> None:
    """Runs the command with the arguments of the process, and ends the process with its exit code.

    0: it was ended by SIGTERM or SIGINT. 1: an error. 2: wrong usage. Else: how tensorflow_model_server ended.
    """
    app.run(main, flags_parser=_parse_flags)


def main(argv: Sequence[str]) -> int:
    """Serves as the parsed flags say, and returns the exit code; `argv` holds flags for tensorflow_model_server."""
    try:
        _check_flags(argv[1:])
        choice = server_choice.choose(_SERVER.value or "auto", _IMAGE.value or "")
        if choice.kind == "embedded" and argv[1:]:
            raise app.UsageError(f"expected no flags of tensorflow_model_server for the embedded server: {argv[1:]}")
        if choice.kind == "embedded":
            return _serve_embedded(choice)
        return _serve_by_process(choice, argv[1:])
    except app.UsageError as error:
        return _COMMAND.usage(error)
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        logging.debug("", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags of this command, then absl's own; returns what follows "--"."""
    own, extra = list(argv), []
    if "--" in own:
        place = own.index("--")
        own, extra = own[:place], own[place + 1 :]
    rest = _COMMAND.parse(own)
    if rest[1:]:
        _COMMAND.exit(f"unexpected arguments {rest[1:]}: flags of tensorflow_model_server come after --")
    return [own[0], *extra]


def _check_flags(extra: Sequence[str]) -> None:
    """Raises UsageError with all problems of the command's own flags and of those for tensorflow_model_server."""
    problems = [
        f"expected a server without --{flag}: with it TF Serving {what}"
        for flag, what in model_server.HARMFUL.items()
        if any(re.fullmatch(f"--?{flag}(=true|=1)?", given) for given in extra)
    ]
    base_path, config_file = _BASE_PATH.value, _CONFIG_FILE.value
    if bool(base_path) == bool(config_file):
        received = "both" if base_path else "neither"
        problems.append(f"expected either --model_base_path or --model_config_file, received {received}")
    if base_path and not os.path.isdir(base_path):
        problems.append(f"--model_base_path: expected a directory, found none at {base_path}")
    if config_file and not os.path.isfile(config_file):
        problems.append(f"--model_config_file: expected a file, found none at {config_file}")
    if _PORT.value and _PORT.value == _REST_PORT.value:
        problems.append(f"--port and --rest_api_port: expected two ports, received {_PORT.value} for both")
    if problems:
        raise app.UsageError("\n".join(problems))


def _models() -> list[ModelOptions]:
    """The models that the flags name."""
    from serving.local_server import ModelOptions
    from serving.local_server.model_config import read_model_config

    if _CONFIG_FILE.value:
        return read_model_config(pathlib.Path(_CONFIG_FILE.value))
    return [ModelOptions(pathlib.Path(_BASE_PATH.value or "").absolute(), _NAME.value or "")]


def _xla_cache(program: pathlib.Path) -> pathlib.Path | None:
    """The directory for what a program compiles; None if nothing is to be kept, or none can be written to.

    Raises:
      UsageError: the one that was asked for cannot be.
    """
    bundle = pathlib.Path(_BASE_PATH.value or "").absolute() / BUNDLE
    if _XLA_CACHE.value is None:
        known = bool(_BASE_PATH.value) and bundle.is_dir()
        return xla_cache.writable_directory(bundle / xla_cache.DIRECTORY, program) if known else None
    if not _XLA_CACHE.value:
        return None
    cache = xla_cache.writable_directory(pathlib.Path(_XLA_CACHE.value).expanduser().absolute(), program)
    if cache is None:
        raise app.UsageError(f"--xla_cache: expected a directory that can be written to, received {_XLA_CACHE.value}")
    return cache


def _serve_embedded(choice: server_choice.Choice) -> int:
    _keep_what_tensorflow_compiles()
    running.announce(choice)
    import_tensorflow_quietly()
    from serving.local_server import LocalServer, ServerOptions

    options = ServerOptions(
        host=_HOST.value or "",
        grpc_port=_PORT.value or 0,
        rest_port=_REST_PORT.value or 0,
        max_concurrency=_CONCURRENCY.value or os.cpu_count() or 1,
        max_queue=_QUEUE.value or 0,
        max_message_bytes=(_MESSAGE_MIB.value or 1) << 20,
        rest_timeout_seconds=_REST_TIMEOUT.value or 0.0,
        shutdown_seconds=_SHUTDOWN.value or 0.0,
        log_requests=bool(_LOG_REQUESTS.value),
        batching=bool(_BATCHING.value),
    )
    models = _models()
    running.run_server(LocalServer(models, options), [model.name for model in models])
    sys.stdout.flush()
    logging.flush()
    # Threads that still load or compute have had their time, and would hold up an ordinary exit.
    os._exit(0)


def _keep_what_tensorflow_compiles() -> None:
    """Names the cache to TensorFlow, which must not be imported yet."""
    spec = importlib.util.find_spec("tensorflow")
    cache = _xla_cache(pathlib.Path(spec.origin)) if spec and spec.origin else None
    if cache is not None:
        os.environ[xla_cache.VARIABLE] = xla_cache.xla_flags(str(cache), os.environ.get(xla_cache.VARIABLE, ""))
        # Reading from the cache logs errors about processor features that XLA:CPU itself has made up (2.21).
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _serve_by_process(choice: server_choice.Choice, extra: Sequence[str]) -> int:
    ports = [port or running.free_port() for port in (_PORT.value, _REST_PORT.value)]
    names = [_NAME.value or ""] if _BASE_PATH.value else [model.name for model in _models()]
    host = _HOST.value or ""
    environment = dict(os.environ)
    if choice.kind == "tensorflow_model_server":
        cache = _xla_cache(pathlib.Path(choice.program))
        if cache is not None:
            environment[xla_cache.VARIABLE] = xla_cache.xla_flags(str(cache), environment.get(xla_cache.VARIABLE, ""))
        if host == from_here(host):
            host = "0.0.0.0"
            print("note: tensorflow_model_server listens on all addresses of this machine", file=sys.stderr)
    running.announce(choice)
    with running.ended_by_signal() as ended, tempfile.TemporaryDirectory() as folder:
        command = _command(choice, ports, pathlib.Path(folder), extra)
        logging.info("%s", " ".join(command))
        return running.run_process(ended, choice, command, environment, host, ports, names)


def _command(
    choice: server_choice.Choice, ports: Sequence[int], folder: pathlib.Path, extra: Sequence[str]
) -> list[str]:
    """What starts the server; the files that it reads are written into `folder`."""
    base_path, config_file = (
        os.path.abspath(path) if path else None for path in (_BASE_PATH.value, _CONFIG_FILE.value)
    )
    session_config = folder / "session.config"
    session_config.write_text(model_server.session_config(), encoding="utf-8")
    batching_file = None
    if _BATCHING.value:
        batching_file = folder / "batching_parameters.txt"
        batching_file.write_text(batching_parameters.of_server(os.cpu_count() or 1), encoding="utf-8")
    flags = model_server.model_server_flags(
        model_base_path=base_path,
        model_config_file=config_file,
        model_name=_NAME.value or "",
        port=ports[0],
        rest_api_port=ports[1],
        gpu=bool(_GPU.value),
        grpc_max_threads=_GRPC_THREADS.value or 1,
        rest_timeout_seconds=_REST_TIMEOUT.value or 1.0,
        session_config_file=session_config,
        batching_parameters_file=batching_file,
    )
    arguments = [*map(str, flags), *extra]
    if choice.kind == "tensorflow_model_server":
        return [choice.program, *arguments]
    paths = [base_path] if base_path else [config_file or "", *(str(model.base_path) for model in _models())]
    return server_choice.container_command(
        choice.program,
        _IMAGE.value or "",
        _HOST.value or "",
        ports,
        [*paths, *(str(file) for file in (session_config, batching_file) if file)],
        arguments,
        gpu=bool(_GPU.value),
        keep_compiled=_XLA_CACHE.value != "",
    )


if __name__ == "__main__":
    run()
