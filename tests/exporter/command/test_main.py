"""The command: its usage, its output, its exit codes, and that a failed export leaves nothing behind."""

import contextlib
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest
import rich.console  # noqa: F401  # it keeps the environment that it is imported in, which `invoke` replaces

from exporter.command import main
from serving.bundle import files

# Keras 3.15 and TensorFlow 2.21 with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MODELS = """
    import time
    import keras, numpy as np, tensorflow as tf

    def dense(*layers, shape=(4,), **options):
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input(shape, **options), *layers, keras.layers.Dense(3)])

    def good(): return dense()
    def lambda_layer(): return dense(keras.layers.Lambda(lambda x: 2 * x, name="double"))
    def unbuilt(): return keras.Sequential([keras.layers.Dense(3)])
    def unknown_shape(): return keras.Sequential([keras.Input((None, 4)), keras.layers.Dense(3)])

    def frozen():
        model = dense()
        model.trainable = False
        return model

    def nan():
        model = dense()
        model.layers[-1].bias.assign([0.0, np.nan, 0.0])
        return model

    class Coupled(keras.layers.Layer):
        def call(self, x): return x - keras.ops.mean(x, axis=0)

    def coupled(): return dense(Coupled())

    class Words(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = tf.Variable(tf.ones(8))

        @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.string)])
        def __call__(self, x): return tf.gather(self.weights, tf.strings.length(x) % 8)

    class Ragged(Words):
        @tf.function(input_signature=[tf.RaggedTensorSpec((None, None), tf.int32)])
        def __call__(self, x): return tf.reduce_sum(tf.gather(self.weights, x), axis=1)

    def fails(): raise RuntimeError("no weights\\nsecond line")

    def sleeps():
        print("sleeping", flush=True)
        time.sleep(60)

    def defines_flags():
        from absl import flags
        for name in ("model", "config", "output", "set"):
            flags.DEFINE_string(name, "theirs", "help")
        assert flags.FLAGS.model == "theirs"
        return dense()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: an empty one but for the module `models`."""
    (tmp_path / "models.py").write_text(textwrap.dedent(MODELS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models", raising=False)  # of other tests
    yield tmp_path
    sys.modules.pop("models", None)


@pytest.fixture
def xterm(monkeypatch):
    """The environment of a terminal with colours."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def invoke(capsys, monkeypatch):
    """Runs the command in this process: invoke(*flags) returns exit code, stdout and stderr."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments):
        for name in main._FLAGS:
            main._FLAGS[name].unparse()
        main.flags.FLAGS["verbosity"].unparse()
        capsys.readouterr()
        try:
            with warnings.catch_warnings():
                code = main.main(main._COMMAND.parse(["ntk-export", *arguments]))
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
ESCAPE = r"\x1b\[[0-9;?]*[A-Za-z]"
HELP_OF_ABSL = {"help", "helpfull", "helpshort", "helpxml"}

# As a terminal starts it, also where the tests run in the background, which has some signals ignored.
START = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "exporter", *sys.argv[1:]])
"""


def command(*arguments, environment=None, **options):
    """Starts the command in a process of its own."""
    unwanted = ("TF_", "JAX_", "KERAS_", "NO_COLOR")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(unwanted)},
        "PYTHONPATH": str(pathlib.Path(main.__file__).parents[2]),
        **(environment or {}),
    }
    return subprocess.Popen(
        [sys.executable, "-c", START, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        env=environment,
    )


def on_terminal(*arguments, cwd, until=None, number=signal.SIGINT, **environment):
    """Runs the command on a terminal; returns its exit code and all that it wrote.

    Once it has written `until`, it gets the signal.
    """
    ours, theirs = pty.openpty()
    names = {"COLUMNS": "100", "TERM": "xterm", **environment}
    process = command(*arguments, cwd=cwd, environment=names, stdout=theirs, stderr=theirs, text=False)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: it has ended
        while part := os.read(ours, 4096):
            written += part
            if until is not None and until.encode() in written:
                process.send_signal(number)
                until = None
    os.close(ours)
    return process.wait(), written.decode()


def left_behind(folder):
    """The base directory and hidden files, which is all that an export writes."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith((".", "out")))


class TestUsage:
    @pytest.mark.parametrize(
        ("flags", "messages"),
        [
            ([], ["--model is missing: expected a file", "--output is missing: expected a model base directory"]),
            (["--model=models:good"], ["--output is missing"]),
            (["--output=out", "--model="], ["--model is missing"]),
            (["--explain"], ["--model is missing"]),
            (["--modle=models:good", "--output=out"], ["unknown flag --modle; did you mean '--model'?"]),
            (["--verbosty=1"], ["unknown flag --verbosty; did you mean '--verbosity'?"]),
            (["--colour"], ["unknown flag --colour\n"]),
            (["model.keras", "--output=out"], ["unexpected argument 'model.keras': all arguments are flags"]),
            (["--model"], ["Missing value for flag --model"]),
            (["--model=models:good", "--output=out", "--safe_mode=7"], ["flag --safe_mode=7: "]),
        ],
    )
    def test_wrong(self, folder, invoke, flags, messages):
        code, out, err = invoke(*flags)
        assert code == 2
        assert not out
        assert err.startswith("error: ")
        assert all(message in err for message in messages)
        assert err.endswith("(ntk-export --help shows all flags)\n")
        assert not left_behind(folder)

    @pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort"])
    def test_help(self, invoke, flag):
        code, out, err = invoke(flag)
        assert (code, err) == (0, "")
        for name in (
            "--model:",
            "--config:",
            "--output:",
            "--set:",
            "--[no]safe_mode:",
            "--[no]explain:",
            "--verbosity",
        ):
            assert name in out

    def test_help_in_groups(self, invoke):
        """Each flag once, in a group that ends with an example whose flags there are."""
        _, out, _ = invoke("--help")
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) <= 120
        _, _, groups = out.partition("\n\nModel and configuration:\n")
        told = [re.findall(r"^  --(?:\[no\])?(\w+):", group, re.MULTILINE) for group in groups.split("\n\n")]
        assert told == [["model", "config", "set"], ["output", "bundle"], ["explain", "safe_mode"], ["verbosity"]]
        assert {name for group in told for name in group} == {*main._FLAGS} - HELP_OF_ABSL | {"verbosity"}
        assert re.findall(r"\n\n(\w[\w ]+):\n", out)[1:] == ["Output", "Checks", "Terminal"]
        examples = re.findall(r"^  \$ (.*)$", out, re.MULTILINE)
        assert len(examples) == 4
        known = {*main._FLAGS, "verbosity", "nobundle"}
        assert all(name in known for example in examples for name in re.findall(r"--(\w+)", example))

    def test_help_on_a_terminal(self, xterm, invoke, monkeypatch):
        _, expected, _ = invoke("--help")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        code, out, _ = invoke("--help")
        assert code == 0
        assert re.sub(ESCAPE, "", out) == expected
        assert "\x1b[1mOutput:\x1b[0m" in out
        assert "\x1b[36m  --model\x1b[0m" in out

    def test_flags_may_be_written_with_a_space(self, folder, invoke):
        code, _, err = invoke("--model", "models:nothing", "--output", "out", "--verbosity", "-1")
        assert code == 1
        assert "models has no attribute 'nothing'" in err


class TestWrongInputIsFoundBeforeTensorFlowIsImported:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--model=model.kears"], "there is no model 'model.kears'; did you mean 'model.keras'?"),
            (["--model=model.keras"], "'model.keras' is truncated, damaged, or no Keras archive"),
            (["--model=model.h5"], "'model.h5' is truncated, damaged, or no HDF5 file"),
            (["--model=empty"], "the directory 'empty' is no SavedModel"),
            (["--model=modles:good"], "there is no module 'modles'"),
            (
                ["--config=config.yml"],
                "config.yml: cannot be read: No such file or directory; did you mean 'config.yaml'",
            ),
            (["--config=config.yaml"], "config.yaml: line 1, column 6: not YAML"),
            (["--config=twice.yaml"], "twice.yaml: line 2: key 'ntk' stands twice, first on line 1"),
            (["--config=unknown.yaml"], "unknown.yaml: ntk: unknown key 'trace_axis'; did you mean 'trace_axes'?"),
            (["--config=types.yaml"], "types.yaml: export.warmup: expected true or false, got 'maybe'"),
            (["--set=ntk.trace_axis=[]"], "unknown key 'ntk.trace_axis'; did you mean 'ntk.trace_axes'?"),
            (["--set=ntk.diagonal_axes=[-1]"], "expected no axis that is in diagonal_axes too, got -1 in both"),
            (["--set=ntk.trace_axes=[0]"], "use the ntk_diagonal signature"),
            (["--set=ntk.precision=float64", "--set=export.platforms=[cpu,tpu]"], "tpu has no float64"),
        ],
    )
    def test_message(self, folder, flags, message):
        (folder / "empty").mkdir()
        for name, text in {
            "model.keras": "no model",
            "model.h5": "no model",
            "config.yaml": "ntk: ]",
            "twice.yaml": "ntk: {}\nntk: {}\n",
            "unknown.yaml": "ntk: {trace_axis: []}",
            "types.yaml": "export: {warmup: maybe}",
        }.items():
            (folder / name).write_text(text)
        blocker = "import sys\nfor name in ('tensorflow', 'jax', 'keras'): sys.modules[name] = None\n"
        (folder / "sitecustomize.py").write_text(blocker)
        process = subprocess.run(
            [sys.executable, "-m", "exporter", "--output=out", "--model=models:good", *flags],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{folder}:{pathlib.Path(main.__file__).parents[2]}"},
        )
        assert process.returncode == 1
        assert process.stderr.startswith("error: ")
        assert message in process.stderr
        assert process.stderr.count("\n") == 1
        assert not process.stdout
        assert not left_behind(folder)


class TestWrongInput:
    @pytest.mark.parametrize(
        ("model", "overrides", "message"),
        [
            ("models:fails", (), "models:fails failed: RuntimeError: no weights"),
            ("models:unbuilt", (), "Expected a built model"),
            ("models:unknown_shape", (), "set export.input_shapes to the sizes of the open axes"),
            ("models:frozen", (), "to have trainable variables"),
            ("models:good", ["ntk.trainable=cnv*"], "'cnv*' matches none"),
            ("models:good", ["ntk.trainable=!*"], "leave at least one variable"),
            ("models:good", ["ntk.trace_axes=[2]"], "expected an axis from -2 to 1 (the output has 2 axes), got 2"),
            ("models:good", ["ntk.trace_axes=[-1]", "ntk.diagonal_axes=[1]"], "got 1 in both"),
            ("models:good", ["ntk.trace_axes=[-2]"], "use the ntk_diagonal signature"),
            ("models:good", ["ntk.output=logits"], "received 'logits'"),
            ("models:Words", (), "Set export.examples to a .npz or .zarr file with real inputs by name (x)"),
            ("models:Ragged", (), "must be a dense tensor, received a RaggedTensor"),
            ("models:coupled", ["ntk.vmap_axes=0"], "Set ntk.vmap_axes: null"),
            ("models:coupled", ["ntk.vmap_axes=auto"], "Set ntk.vmap_axes: null"),
            ("models:nan", (), "Expected finite weights, received NaN or infinity in variable"),
        ],
    )
    def test_message(self, folder, invoke, model, overrides, message):
        flags = [f"--set={override}" for override in overrides]
        code, out, err = invoke(f"--model={model}", "--output=out", "--set=export.platforms=cpu", *flags)
        assert code == 1
        assert err.startswith("error: ")
        assert message in err
        assert "Traceback" not in err
        assert "failed" in out.splitlines()[-1]
        assert not left_behind(folder)

    def test_lambda_layer(self, folder, invoke):
        from exporter.load import load_model

        load_model("models:lambda_layer").save("model.keras")
        code, _, err = invoke("--model=model.keras", "--output=out")
        assert code == 1
        assert "'model.keras' holds Python code in the Lambda layer 'double'" in err
        assert not left_behind(folder)
        code, out, _ = invoke("--model=model.keras", "--explain", "--nosafe_mode")
        assert code == 0
        assert "signature" in out

    def test_output_that_is_a_file(self, folder, invoke):
        (folder / "out").write_text("mine")
        code, _, err = invoke("--model=models:good", "--output=out")
        assert code == 1
        assert "expected a model base directory" in err
        assert (folder / "out").read_text() == "mine"


class TestErrors:
    def test_unexpected_error_is_one_line(self, folder, invoke, monkeypatch):
        monkeypatch.setattr(main, "load_config", _raise(ZeroDivisionError("first line\nsecond line")))
        code, out, err = invoke("--model=models:good", "--output=out")
        assert (code, out) == (1, "")
        assert err == "error: ZeroDivisionError: first line (run with --verbosity=1 for the traceback)\n"

    def test_unexpected_error_without_text(self, folder, invoke, monkeypatch):
        monkeypatch.setattr(main, "load_config", _raise(NotImplementedError()))
        assert invoke("--model=models:good", "--output=out")[2].startswith("error: NotImplementedError (run with")

    @pytest.mark.parametrize("error", [ZeroDivisionError("text"), main.ExportError("text")])
    def test_verbosity_shows_the_traceback(self, folder, invoke, monkeypatch, error):
        monkeypatch.setattr(main, "load_config", _raise(error))
        code, _, err = invoke("--model=models:good", "--output=out", "--verbosity=1")
        assert code == 1
        assert err.startswith("Traceback (most recent call last):")
        assert err.endswith("Error: text\n")


def _raise(error):
    def function(*args):
        raise error

    return function


class TestExport:
    def test_success(self, folder):
        """Only the stages and the directory are shown; what the libraries log is not."""
        config = "export: {platforms: [cpu], signatures: [ntk_diagonal], verify: {examples: 2}, memory_budget: 16KiB}"
        (folder / "config.yaml").write_text(config)
        flags = ("--model=models:defines_flags", "--config=config.yaml", "--output=out", "--set=ntk.trace_axes=[]")
        process = command(*flags, cwd=folder)
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        *stages, path = out.splitlines()
        assert [line.split()[0] for line in stages[:2]] == ["load", "functionalize"]
        assert all(line.endswith(" s") for line in stages)
        assert pathlib.Path(folder, path) == folder / "out" / "1"
        assert (folder / "out" / "1" / "saved_model.pb").is_file()
        assert (folder / "out" / "serving" / "serve.sh").is_file()
        assert stages[-1].startswith("bundle ")
        assert left_behind(folder) == ["out"]

    def test_success_on_a_terminal(self, folder):
        """The running stage is shown, with a bar where parts are counted, and removed."""
        settings = ("signatures=[ntk]", "platforms=[cpu]", "memory_budget=16KiB")
        flags = ("--model=models:good", "--output=out", *(f"--set=export.{setting}" for setting in settings))
        code, written = on_terminal(*flags, cwd=folder)
        assert code == 0
        assert written.count(HIDE) == written.count(SHOW) == 7
        plain = re.sub(ESCAPE, "", written)
        for counted in (r"lower .*functions", r"verify .*of \d+ calls"):
            assert re.search(rf"{counted}.* ━.* s left", plain), counted
        *_, bundle, path, end = re.sub(r".*\r\x1b\[1A\x1b\[2K|\r$", "", written, flags=re.MULTILINE).split("\n")
        assert re.search(r"\x1b\[1;32mbundle", bundle)
        assert (pathlib.Path(folder, path.rstrip("\r")), end) == (folder / "out" / "1", "")

    def test_files_of_the_bundle_that_were_changed(self, tmp_path, monkeypatch):
        written = files.Bundle(tmp_path, {"serve.sh": "a server with it ends", "compose.yaml": ""})
        monkeypatch.setattr(files, "write_bundle", lambda base_dir, options: written)
        expected = "serve.sh kept as it was changed, but a server with it ends, compose.yaml kept as it was changed"
        assert main._bundle(tmp_path) == f"{tmp_path}, {expected}"

    def test_explain(self, folder, invoke):
        code, out, err = invoke("--model=models:good", "--explain", "--set=ntk.trainable=*kernel")
        assert (code, err) == (0, "")
        assert "signature" in out
        assert re.search(r"^programs +\d+, for blocks of 1, 8, 64 examples$", out, re.MULTILINE)
        assert re.search(r"^variable +primitive +rule +form +T +I +J +GFLOP +MiB +share$", out, re.MULTILINE)
        assert re.search(
            r"kernel +dot_general +dense +(gram|explicit|shared)( +\d+){3}( +\d+\.\d+){2} +\d+\.\d%$", out, re.MULTILINE
        )
        assert not left_behind(folder)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str)
    def test_signal_while_loading(self, folder, number, code):
        process = command("--model=models:sleeps", "--output=out", cwd=folder)
        assert process.stdout.readline() == "sleeping\n"
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == code
        assert err == f"error: ended by {signal.Signals(number).name}\n"
        assert out.startswith("load            failed")
        assert not left_behind(folder)

    def test_ctrl_c_on_a_terminal(self, folder):
        """The cursor is there again; without colours if they are not wanted."""
        flags = ("--model=models:sleeps", "--output=out")
        received, written = on_terminal(*flags, cwd=folder, until="sleeping", number=signal.SIGINT, NO_COLOR="1")
        assert received == 130
        assert written.count(HIDE) == written.count(SHOW) == 1
        plain = re.sub(ESCAPE, "", written)
        assert re.search(r"load +failed: models:sleeps .*\r\nerror: ended by SIGINT\r\n$", plain)
        assert not re.search(r"\x1b\[(\d+;)*3\dm", written)

    def test_sigterm_while_exporting(self, folder):
        settings = ("--set=export.platforms=cpu", "--set=export.signatures=[ntk_diagonal]")
        process = command("--model=models:good", "--output=out", *settings, cwd=folder)
        while not process.stdout.readline().startswith("lower"):
            pass
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        assert (process.returncode, err) == (143, "error: ended by SIGTERM\n")
        assert not left_behind(folder)
