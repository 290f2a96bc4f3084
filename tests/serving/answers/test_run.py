"""Answers of exports, against float64 algebra written out here, in TensorFlow and from a server."""

import copy
import dataclasses
import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from serving import Client
from serving.answers.errors import FitError
from serving.answers.main import main
from serving.answers.run import Options, run_fit
from serving.dataset.errors import DatasetError
from serving.doctor.report import Outcome
from serving.doctor.saved_model import check_saved_model
from serving.doctor.server import check_server
from serving.local_server import LocalServer, ModelOptions
from serving.shared.exports import MANIFEST
from serving.shared.manifest_signature import write_manifest

N, NEW, NEIGHBORS = 40, 7, 3


@pytest.fixture(scope="module")
def asked(exported, tmp_path_factory, cluster):
    """asked(name, method, targets) is a fit of an export: its version, the data, and new examples; made once."""
    made = {}

    def ask(name, method, kind):
        if (name, method, kind) not in made:
            made[name, method, kind] = _fit(exported(name), method, kind, tmp_path_factory.mktemp("answers"), cluster)
        return made[name, method, kind]

    return ask


def _fit(export, method, kind, directory, cluster):
    x, new = export.inputs(N), export.inputs(NEW, seed=1)
    output = np.asarray(export.loaded.forward(export.argument(x)), np.float64)
    rng = np.random.default_rng(0)
    y = output + rng.normal(size=output.shape) if kind == "numbers" else rng.integers(0, output.shape[1], N)
    names = [spec["name"] for spec in export.result.manifest["inputs"]]
    ids = np.array([f"example {k}" for k in range(N)])
    np.savez(directory / "d.npz", **dict(zip(names, x, strict=True)), y=y, id=ids)
    said = []
    options = Options(
        str(export.path.parent),
        str(directory / "d.npz"),
        directory / "answers",
        method=method,
        ridge=0.3,
        neighbors=NEIGHBORS,
        holdout=str(directory / "d.npz"),
        outliers=str(directory / "d.npz"),
        scheduler=cluster.scheduler,
    )
    version = run_fit(options, lambda *line: said.append(line))
    assert sorted(p.name for p in directory.iterdir()) == ["answers", "d.npz"]
    return version, x, new, y, said


def expected(export, method, x, new, y, manifest):
    """Every answer, of (n, N) kernels in float64."""

    def similar(a, b):
        if method == "exact":
            return np.asarray(export.loaded.ntk(export.argument(a), export.argument(b)), np.float64)
        a, b = (np.asarray(export.loaded.ntk_features(export.argument(v)), np.float64) for v in (a, b))
        return a @ b.T

    kernel, cross, own = similar(x, x), similar(new, x), np.diag(similar(new, new))
    f, g = (np.asarray(export.loaded.forward(export.argument(v)), np.float64) for v in (x, new))
    answers = manifest["answers"]
    inverse = np.linalg.inv(kernel + answers["ridge"] * np.eye(N))
    latent = own - np.einsum("ni,ij,nj->n", cross, inverse, cross)
    if y.ndim == 2:
        weights = inverse @ (y - f)
        mean, variance = g + cross @ weights, answers["scale"] * (latent + answers["ridge"])
        chosen = np.abs(cross @ weights).argmax(1)
    else:
        weights = inverse @ (np.eye(f.shape[1])[y] - softmax(f, 1))
        variance = answers["scale"] * latent
        mean, chosen = softmax(g / np.sqrt(1 + np.pi / 8 * variance)[:, None], 1), g.argmax(1)
    cosines = cross / np.sqrt(own[:, None] * np.diag(kernel))
    support = cross * weights.T[chosen]
    return {"mean": mean, "variance": variance, "novelty": latent / own}, cosines, support


@pytest.mark.parametrize(
    ("name", "method", "kind"),
    [("many_outputs", "features", "classes"), ("two_inputs", "exact", "numbers")],
)
def test_answers(name, method, kind, exported, asked):
    export = exported(name)
    version, x, new, y, said = asked(name, method, kind)
    manifest = json.loads((version / MANIFEST).read_text())
    predicted, cosines, support = expected(export, method, x, new, y, manifest)
    model = tf.saved_model.load(str(version))
    argument = export.argument(new)
    for key, value in model.predict(argument).items():
        np.testing.assert_allclose(value, predicted[key], rtol=0, atol=1e-4 * np.abs(predicted[key]).max(), err_msg=key)
    for found, scores, order in (
        (model.nearest(argument), cosines, -cosines),
        (model.support(argument), support, -np.abs(support)),
    ):
        best = np.argsort(order, 1, kind="stable")[:, :NEIGHBORS]
        (values,) = (value for key, value in found.items() if key != "id")
        np.testing.assert_allclose(values, np.take_along_axis(scores, best, 1), atol=1e-4 * np.abs(scores).max())
        texts = [[f"example {k}".encode() for k in row] for row in best]
        np.testing.assert_array_equal(found["id"].numpy(), texts)
    np.testing.assert_array_equal(model.forward(argument)["output"], export.loaded.forward(argument))
    answers = manifest["answers"]
    assert (answers["method"], answers["references"], answers["kept"]) == (method, N, N)
    assert answers["outliers"]["auroc"] == pytest.approx(0.5)
    assert {"export", "data", "targets", "ridge", "write", "verify", "holdout", "outliers"} <= {
        word for word, _ in said
    }


def test_no_examples(asked, exported):
    version, *_ = asked("many_outputs", "features", "classes")
    model = tf.saved_model.load(str(version))
    none = exported("many_outputs").inputs(0)[0]
    shapes = {key: value.shape.as_list() for key, value in {**model.predict(none), **model.nearest(none)}.items()}
    assert shapes == {
        "mean": [0, 12],
        "variance": [0],
        "novelty": [0],
        "id": [0, NEIGHBORS],
        "similarity": [0, NEIGHBORS],
    }


def test_served(asked, exported):
    """Both protocols answer the same, also where a call takes several requests; and the doctor finds nothing wrong."""
    version, _, new, *_ = asked("many_outputs", "features", "classes")
    model = tf.saved_model.load(str(version))
    assert not [check for check in check_saved_model(version) if check.outcome is Outcome.BAD]
    with LocalServer([ModelOptions(version.parent, "answers")]) as server:
        for address in (server.grpc_address, f"http://{server.rest_address}"):
            with Client(address, model="answers", message_limit=1024) as client:
                client.wait_until_ready()
                for name in ("predict", "nearest", "support"):
                    given, own = getattr(client, name)(new[0]), getattr(model, name)(new[0])
                    assert given.keys() == own.keys()
                    for key, value in own.items():
                        if key == "id":
                            np.testing.assert_array_equal(given[key], value.numpy())
                        else:
                            np.testing.assert_allclose(given[key], value, rtol=1e-4, atol=1e-6)
                assert client.metadata().manifest["answers"]["method"] == "features"
                assert client.predict("forward", {"x": new[0]})["output"].shape == (NEW, 12)
                checks = check_server(client, 60)
                assert not [check for check in checks if check.outcome is Outcome.BAD]
    assert (version.parent / "serving/batching_parameters.txt").is_file()
    assert "rowwise" not in (version.parent / "serving/models.config").read_text()


def test_texts(exported, tmp_path):
    """An export of several inputs whose front stays TensorFlow; by default few examples are exact."""
    export = exported("sentences")
    x = export.plan.model.examples(8)
    names = [spec["name"] for spec in export.result.manifest["inputs"]]
    plain = [a.astype(str) if a.dtype == object else a for a in x]
    np.savez(tmp_path / "d.npz", **dict(zip(names, plain, strict=True)), y=np.arange(8) % 2)
    run_fit(Options(str(export.path), str(tmp_path / "d.npz"), tmp_path / "a", neighbors=2), lambda *_: None)
    model = tf.saved_model.load(str(tmp_path / "a/1"))
    for argument in (list(x), dict(zip(names, x, strict=True))):
        np.testing.assert_allclose(model.nearest(argument)["similarity"][:, 0], 1, atol=1e-5)
        assert model.predict(argument)["mean"].shape[0] == 8


def _with_signatures(one, directory, *names):
    """An export as it would be with these signatures alone; its base directory."""
    path = directory / "_".join(names) / "1"
    tf.saved_model.save(one.loaded, str(path), {name: one.loaded.signatures[name] for name in names})
    manifest = copy.deepcopy(one.result.manifest)
    manifest["configuration"]["export"]["signatures"] = list(names)
    write_manifest(path, manifest)
    return str(path.parent)


class TestBadInput:
    @pytest.fixture
    def refused(self, exported, tmp_path, cluster):
        """refused(message, arrays, options) raises it, and leaves nothing."""

        def refused(message, arrays, **options):
            np.savez(tmp_path / "d.npz", **arrays)
            path, data = str(exported("many_outputs").path), str(tmp_path / "d.npz")
            given = Options(path, data, tmp_path / "a", scheduler=cluster.scheduler)
            with pytest.raises(DatasetError, match=message):
                run_fit(dataclasses.replace(given, **options), lambda *_: None)
            assert not (tmp_path / "a").exists()

        return refused

    def test_data(self, refused, exported, tmp_path):
        (x,) = exported("many_outputs").inputs(N)
        y = np.arange(N) % 12
        refused("expected the targets 'y' beside the inputs", {"x": x})
        refused("as many rows of every array", {"x": x, "y": y[1:]})
        refused("expected finite numbers, received nan in 'y', example 3", {"x": x, "y": np.where(y == 3, np.nan, y)})
        refused("expected x, y, id, received 'z' too", {"x": x, "y": y, "z": y})
        refused("at least 10 examples, as many as --neighbors, received 9", {"x": x[:9], "y": y[:9]})
        refused("'y' of", {"x": x, "y": y + 1})
        refused("--keep is of --method=features", {"x": x, "y": y}, method="exact", keep=4)
        refused("--memory of at least", {"x": x, "y": y}, method="exact", memory=10)
        refused("output is not a directory", {"x": x, "y": y}, output=tmp_path / "d.npz" / "below")

    def test_exports(self, refused, exported, tmp_path):
        one = exported("many_outputs")
        data = {"x": one.inputs(N)[0], "y": np.zeros(N)}
        without = functools.partial(_with_signatures, one, tmp_path)
        refused("expected the signature 'forward'", data, export=without("ntk", "ntk_diagonal"))
        few = without("ntk", "forward")
        refused("signature 'ntk_features' for --method=features", data, export=few, method="features")
        refused("signature 'ntk_diagonal' for --method=exact", data, export=few)

    def test_answers_are_no_export(self, asked, tmp_path):
        version, *_ = asked("many_outputs", "features", "classes")
        with pytest.raises(FitError, match="received answers of ntk-fit"):
            run_fit(Options(str(version), str(tmp_path / "d.npz"), tmp_path / "a"), lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=d.npz"], "--export is missing"),
        (["--export=e", "--data=d", "--output=o", "--ridge=-1"], "--ridge: expected auto or a number above 0"),
        (["--export=e", "--data=d", "--output=o", "--method=exakt"], "exact"),
        (
            ["--export=e", "--data=d", "--output=o", "--keep=4"],
            "--neighbors: expected at most the --keep=4, received 10",
        ),
        (["--export=e", "--data=d", "--output=o", "--memory=big"], "--memory: expected bytes such as 2GiB"),
        (["--export=e", "--data=d", "--output=o", "--neigbors=3"], "did you mean '--neighbors'"),
    ],
)
def test_usage(arguments, message, capsys, monkeypatch):
    from serving.answers.main import _COMMAND

    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(_COMMAND.parse(["ntk-fit", *arguments])))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
