import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request

import numpy as np
import pytest
import serving_models
from absl import logging

from serving.shared.batching_parameters import of_server
from serving.shared.model_server import session_config
from serving.shared.xla_cache import xla_flags
from serving.start import main as serve_main

X = serving_models.X
PORTS = ("--port=0", "--rest_api_port=0")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("serve") / "m"
    serving_models.save_version(base, 1)
    return base


def start(*arguments, environment=()):
    command = [sys.executable, "-m", "serving.start.main", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(environment)
    )


def run(*arguments, environment=()):
    with start(*arguments, environment=environment) as process:
        output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def until_ready(process):
    """What the command prints, up to the curl line, which is returned too."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("curl"):
            return "".join(lines), shlex.split(line)
    raise AssertionError(f"{''.join(lines)}{process.stderr.read()}")


def do(curl):
    """What the curl line does."""
    *options, url = curl[1:]
    data = options[options.index("-d") + 1].encode() if "-d" in options else None
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as response:
        return json.load(response)


def test_the_embedded_server_from_start_to_end(base):
    """What it compiles is kept beside the bundle, if there is one, and no flags name another place."""
    cache = base / "serving" / "xla_cache"
    cache.parent.mkdir()
    arguments = (f"--model_base_path={base}", "--model_name=m", "--server=embedded")
    with start(*arguments, *PORTS, environment={"TF_XLA_FLAGS": ""}) as process:
        printed, curl = until_ready(process)
        assert printed.startswith("server  embedded (as asked for)\n")
        assert "\nmodel   m, version 1\n" in printed
        assert do(curl) == {"outputs": [0.0]}
        rest = next(line.split()[1] for line in printed.splitlines() if line.startswith("REST"))
        body = json.dumps({"signature_name": "forward", "instances": X.tolist()}).encode()
        with urllib.request.urlopen(f"{rest}/v1/models/m:predict", body, timeout=60) as response:
            np.testing.assert_allclose(json.load(response)["predictions"], serving_models.forward(X, 1))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(cache.glob("*/xla_compile_cache*"))
    assert "is freed" in errors
    assert "Traceback" not in errors


def test_a_signal_ends_it_while_it_still_loads(tmp_path):
    record = serving_models.warmup_record("busy", seconds=np.float32(60))
    serving_models.save_version(tmp_path / "m", 1, warmup=[record])
    begin = time.monotonic()
    with start(f"--model_base_path={tmp_path / 'm'}", "--server=embedded", *PORTS) as process:
        assert process.stdout.readline().startswith("server  embedded")
        for line in process.stderr:
            if "loading version 1" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - begin < 60


def test_a_signal_at_any_moment_of_a_wait():
    program = """
        import signal, sys
        from serving.start import running

        def interrupt(frame, event, argument):
            signal.raise_signal(signal.SIGTERM)
            return interrupt

        with running.ended_by_signal() as ended:
            assert not ended(0)
            sys.settrace(interrupt)  # at each line
            ended(1)
            sys.settrace(None)
            assert ended(None)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --model_base_path or --model_config_file, received neither"),
        (
            ["--model_base_path=/", "--", "--enable_serialization_as_tensor_content=true"],
            "expected a server without --enable_serialization_as_tensor_content: with it .* segmentation fault",
        ),
        (["--model_base_path=/nothing"], "--model_base_path: expected a directory, found none at /nothing"),
        (["--model_config_file=/nothing"], "--model_config_file: expected a file, found none at /nothing"),
        (["--model_base_path=/", "--port=7", "--rest_api_port=7"], "expected two ports, received 7 for both"),
        (["--model_base_path=/", "--port=70000"], "port"),
        (["--model_baseypath=/"], "Unknown command line flag 'model_basypath'|model_base_path"),
        (["--model_base_path=/", "x"], "unexpected arguments \\['x'\\]"),
        (
            ["--model_base_path=/", "--server=embedded", "--", "--port=1"],
            "expected no flags of tensorflow_model_server",
        ),
    ],
)
def test_wrong_usage(arguments, message):
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.endswith("(ntk-serve --help shows all flags)\n")
    import re

    assert re.search(message, errors)


def test_a_cache_that_cannot_be(base, tmp_path):
    (tmp_path / "file").write_text("")
    code, output, errors = run(f"--model_base_path={base}", "--server=embedded", f"--xla_cache={tmp_path / 'file'}")
    assert (code, output) == (2, "")
    assert "--xla_cache: expected a directory that can be written to, received " in errors


def test_nothing_to_serve(tmp_path, capsys):
    verbosity = logging.get_verbosity()
    rest = serve_main._parse_flags(["ntk-serve", f"--model_base_path={tmp_path}", "--server=embedded", *PORTS])
    assert serve_main.main(rest) == 1
    logging.set_verbosity(verbosity)
    expected = f"error: expected a SavedModel in {tmp_path}/1, /2, ..., found no directory with a number for a name\n"
    assert capsys.readouterr().err.endswith(expected)


def test_help():
    code, output, errors = run("--help")
    assert (code, errors) == (0, "")
    assert "ntk-serve --model_base_path=BASE_DIR" in output
    assert "--rest_api_port" in output


@pytest.fixture
def binary(tmp_path):
    """A program in tensorflow_model_server's place: keeps its flags, and answers a request for metadata."""
    path = tmp_path / "tensorflow_model_server"
    path.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent(
            """
            import http.server, json, os, pathlib, sys
            names = "--tensorflow_session_config_file", "--batching_parameters_file"
            paths = [flag.partition("=")[2] for flag in sys.argv if flag.startswith(names)]
            lines = [*sys.argv[1:], *(pathlib.Path(path).read_text().strip() for path in paths)]
            pathlib.Path(__file__).with_name("flags").write_text("\\n".join(lines))
            pathlib.Path(__file__).with_name("xla").write_text(os.environ["TF_XLA_FLAGS"])
            if "--fail" in sys.argv:
                sys.exit(3)
            port = next(int(flag.partition("=")[2]) for flag in sys.argv if flag.startswith("--rest_api_port="))

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    metadata = {"signature_def": {"signature_def": {}}}
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(json.dumps({"model_spec": {"version": "5"}, "metadata": metadata}).encode())

            http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
            """
        )
    )
    path.chmod(0o755)
    return path


def test_tensorflow_model_server_is_started_with_the_flags_it_needs(binary, base, tmp_path):
    environment = {"TF_MODEL_SERVER": str(binary), "TF_XLA_FLAGS": "--mine"}
    cache = tmp_path / "cache"
    arguments = (f"--model_base_path={base}", f"--xla_cache={cache}", "--batching", *PORTS, "--", "--mine=1")
    with start(*arguments, environment=environment) as process:
        printed, _ = until_ready(process)
        assert printed.startswith(f"server  tensorflow_model_server ({binary})\n")
        assert "model   default, version 5" in printed
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "note: tensorflow_model_server listens on all addresses" in errors
    flags = binary.with_name("flags").read_text().splitlines()
    assert f"--model_base_path={base}" in flags
    assert "--xla_cpu_compilation_enabled=true" in flags
    assert "--port=0" not in flags
    assert {"--enable_batching=true", "--enable_per_model_batching_parameters=true"} < {*flags}
    after = flags[flags.index("--mine=1") + 1 :]
    assert after == [*session_config().splitlines(), *of_server(os.cpu_count()).splitlines()]
    (kept,) = cache.iterdir()
    assert binary.with_name("xla").read_text() == f"{xla_flags(str(kept))} --mine"


def test_tensorflow_model_server_that_ends_by_itself(binary, base):
    code, _, errors = run(
        f"--model_base_path={base}", *PORTS, "--", "--fail", environment={"TF_MODEL_SERVER": str(binary)}
    )
    assert code == 3
    assert errors.endswith("error: tensorflow_model_server ended by itself, with exit code 3\n")
