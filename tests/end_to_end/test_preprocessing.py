"""Exports of models that begin with operations without JAX form, as users ask them: for texts and files of images."""

import base64
import json
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from preprocessing_models import PICTURES, WORD_PAIRS, decoding, pictures_file, sentences, string_and_number, texts

from exporter import empirical_ntk_fn_tf
from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.export import explain
from exporter.plan.planning import make_plan
from serving import Client, ServingError
from serving.bundle import batching
from serving.doctor import saved_model
from serving.doctor.report import Outcome
from serving.doctor.server import check_server
from serving.loading import load
from serving.local_server import LocalServer, ModelOptions
from serving.shared import batching_parameters
from serving.shared.exports import MANIFEST
from serving.shared.warmup_file import read_requests

TEXT = texts("red green red", "", "Blue, black red green red")
X = (TEXT, WORD_PAIRS[:, :1], np.float32([[0.5, 1.0], [-1.0, 2.0], [0.0, 0.25]]))


@pytest.fixture
def one(exported):
    return exported("sentences")


def expected(one, x1, x2):
    return one.reference(*map(one.plan.model.behind_front, (x1, x2)))


def by_rest(server, model, rows):
    body = json.dumps({"signature_name": "ntk_diagonal", "instances": rows}).encode()
    url = f"http://localhost:{server.rest_port}/v1/models/{model}:predict"
    with urllib.request.urlopen(url, body) as response:
        return json.load(response)["predictions"]


class TestTexts:
    def test_kernel_of_any_numbers_of_examples(self, one):
        full = expected(one, X, X)
        for n1, n2 in [(3, 2), (1, 3), (0, 2), (0, 0)]:
            x1, x2 = (list(a[:n] for a in X) for n in (n1, n2))
            one.assert_close(one.loaded.ntk(x1, x2), full[:n1, :n2])

    def test_every_signature(self, one):
        full, model = expected(one, X, X), one.loaded
        names = ("text", "word", "size")
        one.assert_close(model.ntk_symmetric(dict(zip(names, X, strict=True))), full)
        one.assert_close(model.ntk_diagonal(list(X)), np.diag(full))
        one.assert_close(model.ntk_with_params(list(X), list(X), dict(model.params)), full)
        np.testing.assert_allclose(model.forward(list(X)), one.model(list(X)), rtol=1e-5, atol=1e-6)

    def test_a_session_as_tensorflow_serving_has_it(self, one):
        script = """
import sys
sys.modules["keras"] = None
import numpy as np, tensorflow as tf
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    signature = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1]).signature_def["ntk_diagonal"]
    inputs = {"x_text": ["red green red", "black"], "x_word": [["red"], ["?"]], "x_size": [[0.5, 1.0], [0.0, 0.0]]}
    print(session.run(signature.outputs["ntk"].name, {signature.inputs[k].name: v for k, v in inputs.items()}).tolist())
"""
        done = subprocess.run([sys.executable, "-c", script, str(one.path)], capture_output=True, text=True, check=True)
        x = (texts("red green red", "black"), texts(["red"], ["?"]), np.float32([[0.5, 1.0], [0.0, 0.0]]))
        one.assert_close(json.loads(done.stdout), np.diag(expected(one, x, x)))

    def test_rest_takes_texts_as_they_are(self, one):
        with LocalServer(ModelOptions(one.path.parent, "sentences")) as server:
            rows = [
                {"x_text": text.decode(), "x_word": [word.decode()], "x_size": size.tolist()}
                for text, (word,), size in zip(*X, strict=True)
            ]
            one.assert_close(by_rest(server, "sentences", rows), np.diag(expected(one, X, X)))

    def test_wrong_shapes(self, one):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"ntk_diagonal x_text: expected string \(n,\), rec"):
            one.loaded.ntk_diagonal([X[1], *X[1:]])
        with pytest.raises(tf.errors.InvalidArgumentError, match="as many examples in each of x_text, x_word, x_size"):
            one.loaded.ntk_diagonal([X[0][:2], *X[1:]])

    def test_warmup_asks_for_words_of_the_vocabulary(self, one):
        _, *requests = read_requests(one.path)
        for request in requests:
            values = request.inputs["x_word" if "x_word" in request.inputs else "x1_word"].string_val
            assert set(values) <= {b"red", b"green", b"blue"}
        assert load(one.path, warmup=True).ntk_manifest is not None

    def test_rowwise_model_is_asked_for_them_too(self, one, tmp_path):
        batching.write_rowwise(one.path, tmp_path / "1")
        requests = list(read_requests(tmp_path / "1"))
        assert len(requests) == len(("forward", "ntk_diagonal", "ntk_features")) * len(batching_parameters.SIZES)
        model = tf.saved_model.load(str(tmp_path / "1"))
        for request in requests[:3]:
            inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in request.inputs.items()}
            assert model.signatures[request.model_spec.signature_name](**inputs)
            assert inputs["x_word"].numpy().ravel()[0] in (b"red", b"green", b"blue")

    def test_manifest_has_the_examples_for_the_doctor(self, one):
        manifest = json.loads((one.path / MANIFEST).read_text())
        assert [spec["dtype"] for spec in manifest["inputs"]] == ["string", "string", "float32"]
        assert [entry["dtype"] for entry in manifest["verification"]["inputs"]] == ["string", "string", "float32"]
        checks = saved_model.check_saved_model(one.path)
        assert not [check for check in checks if check.outcome is Outcome.BAD]
        assert any(check.name == "ntk" and "of float64 on 8 recorded examples" in check.detail for check in checks)

    def test_explain_says_what_stays(self):
        text = str(explain(sentences(), NtkConfig(), ExportConfig()))
        assert "in TensorFlow" in text
        assert "LookupTableFindV2" in text


class TestPictures:
    def test_forward_is_the_model(self, exported):
        one = exported("pictures")
        np.testing.assert_allclose(
            one.loaded.forward(PICTURES["image"]), one.model(PICTURES["image"]), rtol=1e-5, atol=1e-6
        )

    def test_one_that_is_no_picture_fails_alone(self, exported):
        one = exported("pictures")
        with (
            LocalServer(ModelOptions(one.path.parent, "pictures")) as server,
            Client(f"localhost:{server.grpc_port}", model="pictures") as client,
        ):
            right = client.diagonal(PICTURES["image"])
            with pytest.raises(ServingError, match=r"DecodePng|PNG"):
                client.diagonal(texts("no picture"))
            np.testing.assert_allclose(client.diagonal(PICTURES["image"]), right)
            rows = [{"b64": base64.b64encode(picture).decode()} for picture in PICTURES["image"]]
            np.testing.assert_allclose(by_rest(server, "pictures", rows), right, rtol=1e-6)
            with Client(f"http://localhost:{server.rest_port}", model="pictures") as by_http:
                checks = [check for asked in (client, by_http) for check in check_server(asked, 10.0)]
            assert [check for check in checks if check.outcome is Outcome.BAD] == []
            assert sum(check.name == "ntk_diagonal" for check in checks) == 2
        x = one.plan.model.behind_front((PICTURES["image"],))
        one.assert_close(right, np.diag(one.reference(x, x)))


def test_float64():
    """What passes the front by is of 64 bits then, what it computes with is what the model takes."""
    plan = make_plan(string_and_number(), NtkConfig(precision="float64"), ExportConfig())
    assert [spec.dtype for spec in plan.model.signature_inputs] == ["string", "float64"]
    weight, color = plan.model.front([tf.constant([["red"]]), tf.constant([[0.1]], tf.float64)])
    assert weight.dtype == tf.float64
    assert color.dtype == tf.int64


class Joined(tf.Module):
    def __init__(self):
        super().__init__(name="joined")
        self.scale = tf.Variable([[0.5, 1.5]])

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.string, "x")])
    def __call__(self, x):
        of_batch = tf.strings.to_hash_bucket_fast(tf.strings.join([x, tf.strings.reduce_join(x)]), 100)
        return tf.cast(of_batch, tf.float32) @ self.scale


def test_a_front_in_which_examples_influence_each_other():
    with pytest.raises(ExportError, match="Examples influence each other"):
        make_plan(Joined(), NtkConfig(), ExportConfig())


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("none.npz", "found none; correct the path"),
            ("pictures.txt", "expected a .npz or .zarr file"),
            ("text.npz", "written by numpy.savez"),
            ("objects.npz", r"\(not of Python objects\)"),
            ("data.zarr", r"expected the package zarr .* pip install zarr"),
            ("other.npz", "image: expected an array of this name or x, received photo"),
        ],
    )
    def test_examples_file(self, monkeypatch, tmp_path, path, message):
        monkeypatch.setitem(sys.modules, "zarr", None)  # as if it were not installed
        (tmp_path / "data.zarr").mkdir()
        (tmp_path / "pictures.txt").write_text("")
        (tmp_path / "text.npz").write_text("no archive")
        np.savez(tmp_path / "objects.npz", image=PICTURES["image"])
        np.savez(tmp_path / "other.npz", photo=PICTURES["image"].astype(bytes))
        with pytest.raises(ExportError, match=f"^export.examples: .*{message}"):
            explain(decoding(), export=ExportConfig(examples=tmp_path / path))

    def test_prototype_takes_no_texts(self):
        with pytest.raises(ExportError, match="export it by export_savedmodel, or pass the part behind"):
            empirical_ntk_fn_tf(sentences())


def test_real_examples_may_be_x(tmp_path):
    with np.load(pictures_file()) as file:
        np.savez(tmp_path / "x.npz", x=file["image"], y=np.arange(5))
    assert "DecodePng" in str(explain(decoding(), export=ExportConfig(examples=str(tmp_path / "x.npz"))))
