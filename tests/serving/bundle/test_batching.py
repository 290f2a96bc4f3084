"""Batching that cannot be wrong: what may be joined, and that nothing else is."""

import concurrent.futures
import itertools
import os
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf
from batching_session import Refused, run_batch
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

import serving
from serving.bundle import batching
from serving.local_server import LocalServer, ModelOptions, ServerOptions
from serving.shared import batching_parameters
from serving.shared.batching_parameters import SIZES


@pytest.fixture(scope="module")
def rowwise(exported, tmp_path_factory):
    """The version of the row-wise model of the export with two inputs."""
    target = tmp_path_factory.mktemp("rowwise") / "1"
    batching.write_rowwise(exported("two_inputs").path, target)
    return target


@pytest.fixture(scope="module")
def server(rowwise):
    with LocalServer(ModelOptions(rowwise.parent), ServerOptions(batching=True)) as server:
        yield server


def warmup_requests(path):
    for record in tf.data.TFRecordDataset(str(path / "assets.extra/tf_serving_warmup_requests")).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
        yield request.model_spec.signature_name, inputs


class TestWhyKernelsAreNotJoined:
    def test_they_would_get_columns_of_others(self, exported):
        one = exported("two_inputs")
        (a1, b1), (a2, b2) = one.inputs(3, seed=1), one.inputs(2, seed=2)
        requests = [{"x_a": a1, "x_b": b1}, {"x_a": a2, "x_b": b2}]
        answers = run_batch(one.loaded.signatures["ntk_symmetric"], requests)
        assert [answer.shape for answer in answers] == [(3, 5), (2, 5)]
        foreign = one.loaded.ntk([a1, b1], [a2, b2])
        np.testing.assert_allclose(answers[0][:, 3:], foreign, rtol=1e-5)

    @pytest.mark.parametrize("name", ["two_inputs", "coupled"])
    def test_a_server_that_would_does_not_load_them(self, exported, name):
        """Its warmup fails at the first request."""
        one = exported(name)
        signature, inputs = next(warmup_requests(one.path))
        with pytest.raises(Refused, match="at least one dimension"):
            run_batch(one.loaded.signatures[signature], [inputs])
        assert len(one.loaded.signatures[signature](**{k: tf.constant(v) for k, v in inputs.items()})) == 1


class TestRowwiseModel:
    def test_has_only_what_may_be_joined(self, rowwise):
        (graph,) = saved_model_pb2.SavedModel.FromString((rowwise / "saved_model.pb").read_bytes()).meta_graphs
        assert {name for name in graph.signature_def if not name.startswith("__")} == set(batching.ROWWISE)
        assert not (rowwise / "fingerprint.pb").exists()

    def test_shares_its_variables_with_the_export(self, exported, rowwise):
        for path in (exported("two_inputs").path / "variables").iterdir():
            assert os.path.samefile(path, rowwise / "variables" / path.name)

    def test_warmup_calls_exactly_the_allowed_sizes(self, rowwise):
        called = {}
        for signature, inputs in warmup_requests(rowwise):
            called.setdefault(signature, []).append(len(inputs["x_a"]))
            assert {len(array) for array in inputs.values()} == {called[signature][-1]}
        assert called == {name: list(SIZES) for name in batching.ROWWISE}

    def test_parameters(self, rowwise):
        assert (rowwise / "batching_params.pbtxt").is_file()
        parameters = batching_parameters.of_version(rowwise)
        assert parameters.allowed_batch_sizes == SIZES
        assert parameters.max_batch_size == SIZES[-1]  # or TF Serving refuses the model

    def test_joined_requests_get_their_own_rows(self, exported):
        """In any company and at any padding, as if alone."""
        one = exported("two_inputs")
        random = np.random.default_rng(0)
        for seed in range(8):
            counts = random.integers(1, 40, random.integers(1, 6))
            x = [one.inputs(int(n), seed=100 * seed + k) for k, n in enumerate(counts)]
            for name in batching.ROWWISE:
                answers = run_batch(one.loaded.signatures[name], [{"x_a": a, "x_b": b} for a, b in x], SIZES)
                for answer, inputs in zip(answers, x, strict=True):
                    alone = np.asarray(getattr(one.loaded, name)(list(inputs)))
                    np.testing.assert_allclose(answer, alone, rtol=1e-5, atol=1e-6 * np.max(np.abs(alone)))

    def test_is_written_once(self, exported, rowwise):
        before = (rowwise / "saved_model.pb").stat().st_mtime_ns
        batching.write_rowwise(exported("two_inputs").path, rowwise)
        assert (rowwise / "saved_model.pb").stat().st_mtime_ns == before

    def test_coupled_exports_have_none(self, exported, tmp_path):
        with pytest.raises(batching.BatchingError, match="examples influence each other"):
            batching.write_rowwise(exported("coupled").path, tmp_path / "1")
        assert not list(tmp_path.iterdir())


class TestClient:
    def test_splits_to_the_largest_batch(self, exported, server, monkeypatch):
        """As TF Serving refuses more rows than max_batch_size."""
        one = exported("two_inputs")
        client = serving.Client(server.grpc_address)
        send, sizes = client._connection.transport.predict, []

        def predict(model, signature, inputs, timeout):
            sizes.append(len(inputs["x_a"]))
            if sizes[-1] > 256:
                words = f"Task size {sizes[-1]} is larger than maximum input batch size 256"
                raise serving.ServingError(words, "INVALID_ARGUMENT", words)
            return send(model, signature, inputs, timeout)

        monkeypatch.setattr(client._connection.transport, "predict", predict)
        inputs = one.inputs(600)
        answer = client.diagonal(dict(zip("ab", inputs, strict=True)))
        np.testing.assert_allclose(answer, one.loaded.ntk_diagonal(list(inputs)), rtol=1e-5)
        assert sizes == [600, 200, 200, 200]

    @pytest.mark.parametrize("prefix", ["", "http://"])
    def test_each_of_many_clients_gets_its_own_rows(self, exported, server, prefix):
        one = exported("two_inputs")
        pool = one.inputs(200)
        expected = {name: np.asarray(getattr(one.loaded, name)(list(pool))) for name in batching.ROWWISE}
        address = f"{prefix}{server.rest_address if prefix else server.grpc_address}"
        ticket, lock = itertools.count(), threading.Lock()

        def ask(seed):
            random = np.random.default_rng(seed)
            with serving.Client(address) as client:
                for _ in range(15):
                    with lock:
                        next(ticket)
                    rows = random.permutation(200)[: random.integers(1, 30)]
                    x = {"a": pool[0][rows], "b": pool[1][rows]}
                    methods = client.diagonal, client.features, client.forward
                    for name, method in zip(batching.ROWWISE, methods, strict=True):
                        whole = expected[name]
                        np.testing.assert_allclose(method(x), whole[rows], rtol=1e-5, atol=1e-6 * np.abs(whole).max())

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
        assert next(ticket) == 8 * 15


def test_a_version_exported_again_is_written_again(exported, tmp_path):
    """A number may be given again after its version was removed: its row-wise version must not stay."""
    version, target = tmp_path / "1", tmp_path / "rowwise/1"
    shutil.copytree(exported("two_inputs").path, version)
    batching.write_rowwise(version, target)
    first = (target / "saved_model.pb").stat().st_mtime_ns
    batching.write_rowwise(version, target)
    assert (target / "saved_model.pb").stat().st_mtime_ns == first
    (data,) = (version / "variables").glob("*data*")
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.unlink()  # it may be linked
    data.write_bytes(changed)
    batching.write_rowwise(version, target)
    assert (target / "variables" / data.name).read_bytes() == bytes(changed)
