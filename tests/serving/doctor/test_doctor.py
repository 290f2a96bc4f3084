"""What the doctor finds, in exports and in servers, and that it finds nothing in what is right."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import serving_models
import tensorflow as tf

import serving
from serving.client.model import VersionStatus
from serving.doctor import main, results, saved_model, server
from serving.doctor.report import Check, Outcome, bad, good, note, show, table
from serving.shared.exports import MANIFEST
from serving.shared.manifest_signature import write_manifest

NAMES = ["export", "versions", "platforms", "load", "signatures", "warmup", "XLA"]


def outcomes(checks):
    return {check.name: check.outcome for check in checks}


def the(checks, name):
    return next(check for check in checks if check.name == name)


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of an export that a test may damage."""
    return Path(shutil.copytree(exported("two_inputs").path, tmp_path / "1"))


class TestSavedModel:
    def test_right_export(self, exported):
        one = exported("two_inputs")
        checks = saved_model.check_saved_model(one.path)
        assert [check.name for check in checks][: len(NAMES)] == NAMES
        assert not any(check.outcome is Outcome.BAD for check in checks)
        for signature in set(one.plan.export.signatures) - {"ntk_with_params"}:
            assert the(checks, signature).outcome is Outcome.GOOD
            assert "of float64 on 8 recorded examples" in the(checks, signature).detail
            assert "first call" in the(checks, f"{signature} time").detail
        assert the(checks, "warmup").outcome is Outcome.GOOD
        assert "1 ntk_manifest" in the(checks, "warmup").detail

    def test_no_export(self, tmp_path):
        (check,) = saved_model.check_saved_model(tmp_path)
        assert check.outcome is Outcome.BAD
        assert "was not written by ntk-export" in check.detail

    @pytest.mark.parametrize("text", ["{", "{}", "[]", "\xff"])
    def test_damaged_manifest(self, copy, text):
        (copy / "assets.extra/ntk_manifest.json").write_text(text, encoding="latin-1")
        (check,) = saved_model.check_saved_model(copy)
        assert check.outcome is Outcome.BAD
        assert "is damaged" in check.detail

    def test_newest_version(self, tmp_path):
        assert saved_model.find_version(tmp_path) is None
        for name in ("9", "10", str(2**63), "x"):
            (tmp_path / name).mkdir()
        assert saved_model.find_version(tmp_path) == tmp_path / "10"

    def test_damaged_graph(self, copy):
        (copy / "saved_model.pb").write_bytes(b"\x08\x01\x12")
        checks = saved_model.check_saved_model(copy)
        assert (checks[-1].name, checks[-1].outcome) == ("load", Outcome.BAD)

    def test_other_weights(self, exported, tmp_path):
        one = exported("two_inputs")
        model = tf.saved_model.load(str(one.path))
        path = next(path for path in model.params if path.endswith("kernel"))
        model.params[path].assign(1.5 * model.params[path])
        tf.saved_model.save(model, str(tmp_path / "1"), dict(model.signatures))
        shutil.copytree(one.path / "assets.extra", tmp_path / "1/assets.extra")
        found = outcomes(saved_model.check_saved_model(tmp_path / "1"))
        assert {found[name] for name in ("ntk", "ntk_symmetric", "ntk_diagonal", "forward")} == {Outcome.BAD}
        assert found["load"] is not Outcome.BAD

    def test_kink(self, exported, tmp_path, monkeypatch):
        """Where verification found an activation at a kink, a server may find it on the other side."""
        path = shutil.copytree(exported("two_inputs").path, tmp_path / "1")
        monkeypatch.setattr(results.reference, "difference", lambda recorded, result: 0.01)
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["verification"]["at_kinks"] = {"signature/ntk": 0.01}
        write_manifest(path, manifest)
        found = outcomes(saved_model.check_saved_model(path))
        assert found["ntk"] is Outcome.GOOD
        assert found["ntk_symmetric"] is Outcome.BAD

    def test_platform(self, copy):
        self.change(copy, platforms=["tpu"])
        check = the(saved_model.check_saved_model(copy), "platforms")
        assert check.outcome is Outcome.BAD
        assert "exported for tpu; here are CPU" in check.detail

    def test_newer_serialization(self, copy):
        manifest = json.loads((copy / "assets.extra/ntk_manifest.json").read_text())
        self.change(copy, versions={**manifest["versions"], "xla_call_module": 10})
        assert the(saved_model.check_saved_model(copy), "versions").outcome is Outcome.BAD

    def test_missing_signature(self, copy):
        manifest = json.loads((copy / "assets.extra/ntk_manifest.json").read_text())
        configuration = manifest["configuration"]
        configuration["export"]["signatures"].append("other")
        self.change(copy, configuration=configuration)
        assert "other are missing" in the(saved_model.check_saved_model(copy), "signatures").detail

    @pytest.mark.parametrize(
        ("records", "outcome", "words"),
        [
            (None, Outcome.NOTE, "the first request of each kind compiles it"),
            ([b"no record"], Outcome.BAD, "is damaged"),
            ([], Outcome.BAD, "0 requests"),
            ([serving_models.warmup_record("nope", x=[1.0])], Outcome.BAD, "the signature 'nope'"),
            ([serving_models.warmup_record("forward", x=[1.0])], Outcome.BAD, "inputs x, expected x_a, x_b"),
            (
                [serving_models.warmup_record("forward", x_a=np.ones((2, 5), "f"), x_b=np.ones((2, 3), "i"))],
                Outcome.BAD,
                "x_a float32 (2, 5), expected float32 (None, 4)",
            ),
            (
                [serving_models.warmup_record("forward", x_a=np.ones((2, 4), "f"), x_b=np.ones((2, 3), "i"))],
                Outcome.NOTE,
                "1 requests: 1 forward; none for ntk",
            ),
        ],
    )
    def test_warmup(self, exported, tmp_path, records, outcome, words):
        one = exported("two_inputs")
        (tmp_path / "assets.extra").mkdir()
        if records is not None:
            with tf.io.TFRecordWriter(str(tmp_path / "assets.extra/tf_serving_warmup_requests")) as writer:
                for record in records:
                    writer.write(record if isinstance(record, bytes) else record.SerializeToString())
        check = saved_model._check_warmup(tmp_path, one.result.manifest, one.loaded)
        assert check.outcome is outcome
        assert words in check.detail

    @staticmethod
    def change(version, **entries):
        path = version / "assets.extra/ntk_manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


class TestServer:
    @pytest.mark.parametrize("prefix", ["", "http://"])
    def test_right_server(self, served, prefix):
        address = served.grpc_address if not prefix else f"http://{served.rest_address}"
        with serving.Client(address, model="two_inputs") as client:
            checks = server.check_server(client, 30)
        assert not any(check.outcome is Outcome.BAD for check in checks)
        assert outcomes(checks)["answers"] is outcomes(checks)["batching"] is Outcome.GOOD
        assert "within" in the(checks, "ntk").detail

    def test_server_that_writes_tensor_content(self, served, monkeypatch):
        """Found out by numbers; a text is not asked for."""
        with serving.Client(served.grpc_address, model="two_inputs") as client:
            asked = self.record(client, monkeypatch, lambda answer: dataclasses.replace(answer, as_content=True))
            checks = server.check_server(client, 30)
        assert outcomes(checks) == {"server": Outcome.GOOD, "answers": Outcome.BAD}
        assert "Start it without that flag" in the(checks, "answers").detail
        assert asked == ["ntk_diagonal"]

    @pytest.mark.parametrize(
        ("noise", "words"),
        [
            (lambda shape: np.zeros(shape), "is 0 for every example"),
            (lambda shape: np.arange(np.prod(shape)).reshape(shape), "differs for equal examples"),
            (lambda shape: np.full(shape, np.nan), "differs for equal examples"),
        ],
    )
    def test_server_that_reads_noise(self, served, monkeypatch, noise, words):
        """As a server with that flag does over REST."""

        def changed(answer):
            outputs = {name: noise(np.shape(value)) for name, value in answer.outputs.items()}
            return dataclasses.replace(answer, outputs=outputs)

        with serving.Client(f"http://{served.rest_address}", model="two_inputs") as client:
            asked = self.record(client, monkeypatch, changed)
            checks = server.check_server(client, 30)
        assert outcomes(checks) == {"server": Outcome.GOOD, "answers": Outcome.BAD}
        assert words in the(checks, "answers").detail
        assert "--enable_serialization_as_tensor_content" in the(checks, "answers").detail
        assert "ntk_manifest" not in asked

    @pytest.mark.parametrize("prefix", ["", "http://"])
    def test_server_that_answers_no_numbers(self, served, monkeypatch, prefix):
        """Over REST a text could end it, over gRPC not."""

        def fail(answer):
            raise serving.ServingError("no", "INTERNAL", "no")

        with serving.Client(
            f"{prefix}{served.rest_address if prefix else served.grpc_address}", model="linear"
        ) as client:
            self.record(client, monkeypatch, fail)
            checks = server.check_server(client, 30)
        assert the(checks, "answers").outcome is (Outcome.BAD if prefix else Outcome.NOTE)
        assert ("signatures" in outcomes(checks)) is not bool(prefix)

    @staticmethod
    def record(client, monkeypatch, change):
        """The signatures that are asked from now on; answers are changed on the way."""
        asked = []
        predict = client._connection.transport.predict

        def recorded(model, signature, *arguments):
            asked.append(signature)
            return change(predict(model, signature, *arguments))

        monkeypatch.setattr(client._connection.transport, "predict", recorded)
        return asked

    def test_no_server(self):
        with serving.Client("127.0.0.1:1") as client:
            (check,) = server.check_server(client, 0.1)
        assert check.outcome is Outcome.BAD
        assert "ntk-serve" in check.detail

    def test_server_without_xla(self, served, monkeypatch):
        words = "XLA compilation disabled"

        def predict(client, name, inputs):
            raise serving.ServingError(f"{words}: --xla_cpu_compilation_enabled=true", "UNIMPLEMENTED", words)

        with serving.Client(served.grpc_address, model="two_inputs") as client:
            client.metadata()
            monkeypatch.setattr(serving.Client, "predict", predict)
            checks = server.check_server(client, 30)
        assert the(checks, "XLA").outcome is Outcome.BAD
        assert "--xla_cpu_compilation_enabled=true" in the(checks, "XLA").detail

    def test_server_that_joins_requests(self, served, monkeypatch):
        words = "Batching Run() input tensors must have at least one dimension"
        with serving.Client(served.grpc_address, model="two_inputs") as client:

            def predict(*args):
                raise serving.ServingError(words, "INVALID_ARGUMENT", words)

            monkeypatch.setattr(client._connection.transport, "predict", predict)
            checks = server.check_server(client, 30)
        assert the(checks, "batching").outcome is Outcome.BAD
        assert "would mix callers' rows" in the(checks, "batching").detail

    @pytest.mark.parametrize(("number", "outcome"), [(1, Outcome.NOTE), (9, Outcome.BAD)])
    def test_version_that_failed(self, served, monkeypatch, number, outcome):
        """Wrong if it is newer than the one that is served."""
        with serving.Client(served.grpc_address, model="linear") as client:
            monkeypatch.setattr(client, "status", lambda: [VersionStatus(number, "END", "no such file")])
            check = the(server.check_server(client, 30), "server")
        assert check.outcome is outcome
        assert "no such file" in check.detail

    def test_models_that_tell_nothing(self, served):
        with serving.Client(served.grpc_address, model="linear") as client:
            checks = server.check_server(client, 30)
        assert the(checks, "results").outcome is Outcome.NOTE


def test_command(exported, copy):
    """The exit code tells; JAX cannot be imported there."""
    (copy / "assets.extra/ntk_manifest.json").unlink()
    environment = {**os.environ, "PYTHONPATH": str(Path(main.__file__).parents[2])}
    environment.pop("TF_XLA_FLAGS", None)  # TensorFlow logs what it finds in the suite's cache of programs
    for path, code, words in (
        (exported("two_inputs").path.parent, 0, "with TensorFlow alone"),
        (copy, 1, "was not written by ntk-export"),
    ):
        command = [sys.executable, "-m", "serving.doctor.main", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (code, ""), done.stderr
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "expected one PATH or ADDRESS"),
        (["a", "b"], 2, "received a, b"),
        (["a", "--model=b"], 2, "unknown flag --model; did you mean '--model_name'?"),
        (["nowhere"], 1, "expected a version's directory"),
        (["127.0.0.1:1", "--timeout=0.1"], 1, "UNAVAILABLE"),
    ],
)
def test_usage(capsys, arguments, code, words):
    for name in main._FLAGS:
        main._FLAGS[name].unparse()
    try:
        received = main.main(main._COMMAND.parse(["ntk-doctor", *arguments]))
    except SystemExit as error:
        received = error.code
    out, err = capsys.readouterr()
    assert received == code
    assert words in " ".join((out + err).split())


def test_table():
    checks = [good("a", "fine"), note("long name", "word " * 30), bad("b", "no"), Check("c", Outcome.GOOD, "")]
    lines = table(checks, 60).splitlines()
    assert lines[0] == "a          ok     fine"
    assert lines[1].startswith("long name  note   word word")
    assert lines[2].startswith(" " * 18 + "word")
    assert lines[-2:] == ["b          WRONG  no", "c          ok"]
    assert all(len(line) <= 60 for line in lines)


def test_table_in_colour(monkeypatch):
    """On a terminal, without NO_COLOR; the same words as in a pipe."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    checks = [good("a", "fine [b]"), note("long name", "word " * 30), bad("b", "no")]

    def shown(isatty):
        stream = io.StringIO()
        stream.isatty = lambda: isatty
        show(checks, stream, 60)
        return stream.getvalue()

    assert shown(False) == table(checks, 60) + "\n"
    coloured = shown(True)
    for code, word in ((32, "ok"), (33, "note"), (31, "WRONG")):
        assert re.search(rf"\x1b\[(1;)?{code}m{word}", coloured)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert all(len(line) <= 60 for line in plain.splitlines())
    assert plain.split() == table(checks, 60).split()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[(1;)?3\dm", shown(True))
