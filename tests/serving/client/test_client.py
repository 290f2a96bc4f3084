"""The client against the embedded server: the kernel of the SavedModel in process, whatever the protocol and size."""

import concurrent.futures
import re
import socket
import threading
import time
import types

import numpy as np
import pytest
import serving_models
import tensorflow as tf

import serving
from serving.client import connection
from serving.client.model import ModelRef, Prediction, VersionStatus
from serving.local_server import LocalServer, ModelOptions, ServerOptions

WORDS = list(serving_models.VOCABULARY)
LIMITS = {"one request": 128 * 2**20, "several": 16_000}


@pytest.fixture(params=["gRPC", "REST"])
def connect(request, served):
    """connect(model, ...) is a client by each of the protocols."""
    address = served.grpc_address if request.param == "gRPC" else f"http://{served.rest_address}"
    clients = []

    def make(model="default", **options):
        clients.append(serving.Client(address, model=model, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def close_to(result, expected):
    expected = np.asarray(expected)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 * np.max(np.abs(expected), initial=1e-30))


class TestValues:
    @pytest.mark.parametrize("limit", LIMITS)
    @pytest.mark.parametrize("name", ["two_inputs", "all_axes"])
    def test_every_method(self, exported, connect, name, limit):
        one = exported(name)
        client = connect(name, message_limit=LIMITS[limit], concurrency=3)
        x1, x2 = one.inputs(11, seed=1), one.inputs(7, seed=2)
        a, b = (x[0] if len(x) == 1 else x for x in (x1, x2))
        close_to(client.kernel(a, b), one.loaded.ntk(one.argument(x1), one.argument(x2)))
        close_to(client.kernel(a), one.loaded.ntk_symmetric(one.argument(x1)))
        close_to(client.diagonal(a), one.loaded.ntk_diagonal(one.argument(x1)))
        if name == "two_inputs":
            close_to(client.forward(a), one.loaded.forward(one.argument(x1)))

    def test_several_inputs_by_name(self, exported, connect):
        one = exported("two_inputs")
        x = one.inputs(4)
        named = {spec["name"]: a for spec, a in zip(one.result.manifest["inputs"], x, strict=True)}
        client = connect("two_inputs")
        np.testing.assert_array_equal(client.kernel(named), client.kernel(x))

    def test_other_parameters(self, exported, connect):
        one = exported("two_inputs")
        x1, x2 = one.inputs(5), one.inputs(3, seed=1)
        params = {path: 0.5 * value.numpy() for path, value in one.loaded.params.items()}
        client = connect("two_inputs")
        left, right = one.argument(x1), one.argument(x2)
        close_to(client.kernel(x1, x2, params=params), one.loaded.ntk_with_params(left, right, params))
        close_to(client.kernel(x1, params=params), one.loaded.ntk_with_params(left, left, params))
        path, *_ = params
        with pytest.raises(serving.ServingError, match=f"no {path}"):
            client.kernel(x1, x2, params={p: v for p, v in params.items() if p != path})

    def test_no_examples(self, exported, connect):
        one = exported("all_axes")
        (x,) = one.inputs(3)
        client = connect("all_axes")
        kept = one.loaded.ntk(x, x).shape[2:]
        assert client.kernel(x[:0], x).shape == (0, 3, *kept)
        assert client.kernel(x[:0]).shape == (0, 0, *kept)
        assert client.diagonal(x[:0]).shape[0] == 0

    def test_versions_and_labels(self, connect):
        x = serving_models.X
        for options, scale in (({}, 2), ({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)):
            close_to(connect("linear", **options).forward(x), serving_models.forward(x, scale))

    def test_any_signature(self, connect):
        x = serving_models.X
        outputs = connect("linear").predict("forward", {"x": x.astype(np.float64)})
        assert list(outputs) == ["output"]
        close_to(outputs["output"], serving_models.forward(x, 2))

    def test_texts(self, connect):
        outputs = connect("linear").predict("text", {"x": ["ä", b"\xff"]})
        assert outputs["y_bytes"].tolist() == ["ä".encode(), b"\xff"]
        assert (outputs["length"].tolist(), outputs["length"].dtype) == ([2, 1], np.int32)

    def test_texts_as_arrays_of_any_kind(self, connect):
        expected = [["Ä".encode(), b"B"], [b"", b"A" * 300]]
        for dtype in (str, bytes, object):
            texts = [["b", ""], ["a" * 300, "c"]] if dtype is bytes else [["ä", "b"], ["", "a" * 300]]
            outputs = connect("words").predict("serving_default", {"words": np.array(texts, dtype)})
            assert outputs["upper_bytes"].tolist() == [[np.str_(t).upper().encode() for t in row] for row in texts]
            assert outputs["place"].tolist() == [[WORDS.index(t) if t in WORDS else -1 for t in row] for row in texts]
        mixed = np.array([["ä".encode(), "b"], ["", b"a" * 300]], object)
        assert connect("words").predict("serving_default", {"words": mixed})["upper_bytes"].tolist() == expected

    def test_texts_are_split_by_their_length(self, connect):
        words = np.array([["a", "x" * 900]] * 20, object)
        output = connect("words", message_limit=4000).forward(words, tile=True)
        np.testing.assert_array_equal(output, [[1.0]] * 20)
        with pytest.raises(serving.ServingError, match=r"expected at least [0-9,]+ bytes for one pair"):
            connect("words", message_limit=1500).forward(np.array([["a", "x" * 2000]]), tile=True)

    def test_what_is_no_text(self, connect):
        for wrong in ([[1, 2]], [["a", None]]):
            with pytest.raises(
                serving.ServingError, match=r"words: expected string \(n, 2\), received values that are"
            ):
                connect("words").predict("serving_default", {"words": wrong})
        with pytest.raises(serving.ServingError, match=r"words: expected string \(n, 2\), received object \(1, 3\)"):
            connect("words").predict("serving_default", {"words": [["a", "b", "c"]]})

    def test_many_threads_get_their_own_answers(self, connect):
        client = connect("linear")

        def ask(seed):
            x = np.random.default_rng(seed).normal(size=(1 + seed % 5, serving_models.FEATURES)).astype(np.float32)
            np.testing.assert_allclose(client.forward(x), serving_models.forward(x, 2), rtol=1e-5, atol=1e-5)

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(100)))


class TestWhatIsServed:
    def test_metadata(self, exported, connect):
        one = exported("two_inputs")
        served = connect("two_inputs").metadata()
        assert (served.name, served.version, served.batched, served.coupled) == ("two_inputs", 1, False, False)
        assert served.manifest == one.result.manifest
        assert set(served.signatures) == {*one.loaded.signatures}
        left = served.signatures["ntk"].inputs["x1_a"]
        assert (left.shape, left.dtype) == ((None, 4), "DT_FLOAT")
        assert connect("coupled").metadata().coupled is True
        assert connect("linear").metadata().coupled is None

    def test_status(self, connect):
        assert set(connect("linear").status()) == {VersionStatus(1, "AVAILABLE"), VersionStatus(2, "AVAILABLE")}


class TestSplitting:
    def test_coupled_batches_are_not_split_silently(self, exported, connect):
        (x,) = exported("coupled").inputs(30)
        client = connect("coupled", message_limit=2000)
        with pytest.raises(serving.ServingError, match=r"must not be split: .* influence each other .*vmap_axes: null"):
            client.kernel(x, x)
        with pytest.raises(serving.ServingError, match="influence each other"):
            client.kernel(x)
        with pytest.raises(serving.ServingError, match="influence each other"):
            client.diagonal(np.tile(x, (20, 1)))
        whole = connect("coupled")
        close_to(whole.kernel(x, x), exported("coupled").loaded.ntk(x, x))
        split = client.kernel(x, x, tile=True)
        assert split.shape == (30, 30)
        assert not np.allclose(split, whole.kernel(x, x))  # which is what the error is about

    def test_models_that_do_not_tell(self, connect):
        x = np.ones((100, serving_models.FEATURES), np.float32)
        client = connect("linear", message_limit=4000)
        with pytest.raises(serving.ServingError, match=r"does not tell .* \(no ntk_manifest\).*tile=True"):
            client.kernel(x, x)
        close_to(client.kernel(x, x, tile=True), np.full((100, 100), 3 * 8.0**2, np.float32))

    def test_tile_false(self, exported, connect):
        x = exported("two_inputs").inputs(40)
        with pytest.raises(serving.ServingError, match="does not fit one message of 2,000 bytes, and tile=False"):
            connect("two_inputs", message_limit=2000).kernel(x, tile=False)

    def test_progress(self, exported, connect, capsys):
        x = exported("two_inputs").inputs(40)
        connect("two_inputs", message_limit=2000, progress=True).kernel(x)
        lines = capsys.readouterr().err.splitlines()
        done, total = re.match(r"kernel 40 × 40: (\d+)/(\d+) requests", lines[-1]).groups()
        assert int(done) == int(total) > 1


class TestErrors:
    def test_names(self, connect):
        x = serving_models.X
        with pytest.raises(serving.ServingError, match=r"NOT_FOUND .* 'nope'.* no model of that name") as error:
            connect("nope").forward(x)
        assert error.value.code == "NOT_FOUND"
        with pytest.raises(serving.ServingError, match=r"version 9.* There are versions 2 AVAILABLE, 1 AVAILABLE|1 AV"):
            connect("linear", version=9).forward(x)
        with pytest.raises(serving.ServingError, match="Unrecognized servable version label: old"):
            connect("linear", label="old").forward(x)

    def test_signatures(self, exported, connect):
        with pytest.raises(serving.ServingError, match="no signature 'forward': expected one of ntk, ntk_diagonal"):
            connect("coupled").forward(exported("coupled").inputs(2)[0])

    def test_shapes_are_checked_here(self, connect):
        with pytest.raises(serving.ServingError, match=r"x1: expected float32 \(n, 4\), received float32 \(2, 3\)"):
            connect("linear").kernel(np.ones((2, 3), np.float32), serving_models.X)

    def test_inputs_are_checked_here(self, connect):
        with pytest.raises(serving.ServingError, match=r"expected an array for each of x; no x; no input is named 'y'"):
            connect("linear").predict("forward", {"y": serving_models.X})

    @pytest.mark.parametrize("version", [-1, 2**63, 2**70])
    def test_versions_that_are_none(self, connect, version):
        with pytest.raises(ValueError, match="expected a version from 0 to 9223372036854775807, received"):
            connect("linear", version=version)

    @pytest.mark.parametrize("version", [2**64, 2**70])
    def test_an_answer_without_words(self, served, version, monkeypatch):
        """As TF Serving's to a version beyond 64 bits in a path."""
        with serving.Client(f"http://{served.rest_address}") as client:
            transport = client._connection.transport
            with pytest.raises(serving.ServingError, match=f"Failed to convert version: {version} to numeric"):
                transport.predict(ModelRef("linear", version), "forward", {"x": serving_models.X}, 30)
            empty = types.SimpleNamespace(status=400, data=b"")
            monkeypatch.setattr(transport._pool, "request", lambda *args, **kwargs: empty)
            with pytest.raises(serving.ServingError, match=r"INVALID_ARGUMENT .*: HTTP 400: no words") as error:
                transport.predict(ModelRef("linear", version), "forward", {"x": serving_models.X}, 30)
        assert error.value.code == "INVALID_ARGUMENT"

    def test_a_server_that_writes_texts_as_content(self, served, monkeypatch):
        """It is told from the answer, and so is what to do."""

        def as_content(array, proto):
            proto.dtype = 7
            proto.tensor_content = b"\x02{}"

        with serving.Client(served.grpc_address, model="two_inputs") as client:
            monkeypatch.setattr("serving.local_server.predict.tensors.fill_proto", as_content)
            with pytest.raises(serving.ServingError, match=r"INTERNAL .* Start it without that flag: ntk-serve"):
                client.metadata()

    def test_closed(self, connect):
        client = connect("linear")
        client.forward(serving_models.X)
        client.close()
        with pytest.raises(serving.ServingError, match="was closed; make another"):
            client.forward(serving_models.X)

    def test_shapes_are_checked_there(self, exported, connect):
        a, b = exported("two_inputs").inputs(3)
        with pytest.raises(
            serving.ServingError, match=r"expected as many examples in each of x_a, x_b, received \(3, 2\)"
        ):
            connect("two_inputs").predict("forward", {"x_a": a, "x_b": b[:2]})

    def test_options(self):
        for options in ({"version": 1, "label": "a"}, {"deadline": 0}, {"message_limit": 10}, {"concurrency": 0}):
            with pytest.raises(ValueError, match="expected"):
                serving.Client("localhost:1", **options)
        with pytest.raises(ValueError, match="expected host:port"):
            serving.Client("ftp://localhost:1")

    @pytest.mark.parametrize("prefix", ["", "http://"])
    def test_no_server(self, prefix):
        client = serving.Client(f"{prefix}127.0.0.1:{free_port()}")
        start = time.monotonic()
        with pytest.raises(serving.ServingError, match=r"UNAVAILABLE from .*ntk-serve") as error:
            client.forward(serving_models.X)
        assert error.value.code == "UNAVAILABLE"
        assert time.monotonic() - start < 30  # not the deadline of ten minutes

    def test_messages_that_are_too_large_for_the_server(self, tmp_path):
        serving_models.save_version(tmp_path / "m", 1)
        options = ServerOptions(max_message_bytes=20_000)
        with LocalServer(ModelOptions(tmp_path / "m"), options) as small:
            for address in (small.grpc_address, f"http://{small.rest_address}"):
                x = np.ones((2000, serving_models.FEATURES), np.float32)
                with pytest.raises(serving.ServingError, match=r"Lower Client\(message_limit=\.\.\.\)"):
                    serving.Client(address).diagonal(x)
                client = serving.Client(address, message_limit=15_000)
                close_to(client.diagonal(x, tile=True), np.full(2000, 48, np.float32))
                with pytest.raises(serving.ServingError, match=r"larger than max .*Lower Client\(message_limit"):
                    serving.Client(address).kernel(x[:100], x[:100])  # the answer

    def test_answers_of_another_shape(self, served, monkeypatch):
        """As a server gives that joined two requests for a kernel: as many rows, and the other's columns."""
        client = serving.Client(served.grpc_address, model="linear")
        joined = Prediction({"ntk": np.zeros((3, 5), np.float32)}, 2)
        monkeypatch.setattr(client._connection.transport, "predict", lambda *args: joined)
        with pytest.raises(serving.ServingError, match=r"shape \(3, 5\), where \(3, 3\).*--enable_batching"):
            client.kernel(serving_models.X)


class TestServersThatChange:
    def test_deadline(self, served, monkeypatch):
        client = serving.Client(served.grpc_address, model="linear", deadline=0.5)
        client.forward(serving_models.X)
        stop = threading.Event()
        monkeypatch.setattr("serving.local_server.predict.tensors.fill_proto", lambda *args, **kwargs: stop.wait(30))
        with pytest.raises(serving.ServingError, match=r"DEADLINE_EXCEEDED.*Raise Client\(deadline=\.\.\.\)"):
            client.forward(serving_models.X)
        stop.set()

    def test_a_version_that_goes_in_the_middle_of_a_call(self, tmp_path, monkeypatch):
        """All tiles are of one version: when it is unloaded, the call starts again with the next."""
        base = tmp_path / "m"
        serving_models.save_version(base, 1, 1)
        with LocalServer(ModelOptions(base), ServerOptions(poll_seconds=0.05)) as server:
            client = serving.Client(server.grpc_address, message_limit=4000, concurrency=1)
            x = np.ones((100, serving_models.FEATURES), np.float32)
            seen = []
            send = client._connection.transport.predict

            def predict(model, *args):
                seen.append(model.version)
                if len(seen) == 3:
                    serving_models.save_version(base, 2, 2)
                    wait_for(lambda: {s.version: s.state for s in client.status()}.get(1, "END") == "END")
                return send(model, *args)

            monkeypatch.setattr(client._connection.transport, "predict", predict)
            close_to(client.kernel(x, x, tile=True), np.full((100, 100), 3 * 8.0**2, np.float32))
            assert seen[:3] == [1, 1, 1]
            assert set(seen[3:]) == {2}

    @pytest.mark.parametrize("prefix", ["", "http://"])
    def test_a_split_call_is_for_the_latest_version(self, tmp_path, prefix):
        """Also if an older one, which the client knows, is served still."""
        base = tmp_path / "m"
        serving_models.save_version(base, 1, 1)
        with LocalServer(ModelOptions(base, num_versions=2), ServerOptions(poll_seconds=0.05)) as server:
            address = f"{prefix}{server.rest_address if prefix else server.grpc_address}"
            client = serving.Client(address, message_limit=8000)
            client.forward(serving_models.X)
            serving_models.save_version(base, 2, 2)
            wait_for(lambda: {s.version for s in client.status() if s.state == "AVAILABLE"} == {1, 2})
            x = np.ones((100, serving_models.FEATURES), np.float32)
            close_to(client.kernel(x, x, tile=True), np.full((100, 100), 3 * 8.0**2, np.float32))

    def test_a_new_version_with_other_inputs(self, tmp_path):
        """What was known of the old version is forgotten."""
        base = tmp_path / "m"
        serving_models.save_version(base, 1, 1)
        with LocalServer(ModelOptions(base), ServerOptions(poll_seconds=0.05)) as server:
            client = serving.Client(server.grpc_address)
            client.forward(serving_models.X)
            model = tf.Module()
            model.f = tf.function(lambda x: {"output": 2 * x}, input_signature=[tf.TensorSpec([None, 7], name="x")])
            tf.saved_model.save(model, str(base / "writing"), {"forward": model.f})
            (base / "writing").rename(base / "2")
            wait_for(lambda: client.metadata().version == 2)
            client._connection.served(refresh=True)
            x = np.ones((2, 7), np.float32)
            close_to(client.forward(x), 2 * x)

    @pytest.mark.parametrize("prefix", ["", "http://"])
    def test_a_new_version_with_another_dtype(self, tmp_path, prefix, monkeypatch):
        monkeypatch.setattr(connection, "_FRESH", 0.0)  # seconds
        base = tmp_path / "m"
        serving_models.save_version(base, 1, 1)
        with LocalServer(ModelOptions(base), ServerOptions(poll_seconds=0.05)) as server:
            client = serving.Client(f"{prefix}{server.rest_address if prefix else server.grpc_address}")
            assert client.forward(serving_models.X).dtype == np.float32
            model = tf.Module()
            spec = tf.TensorSpec([None, serving_models.FEATURES], tf.float64, name="x")
            model.f = tf.function(lambda x: {"output": x / 3}, input_signature=[spec])
            tf.saved_model.save(model, str(base / "writing"), {"forward": model.f})
            (base / "writing").rename(base / "2")
            wait_for(lambda: {s.version: s.state for s in client.status()}.get(2) == "AVAILABLE")
            expected = serving_models.X.astype(np.float64) / 3
            close_to(client.predict("forward", {"x": serving_models.X})["output"], expected)
            close_to(client.forward(serving_models.X), expected)

    @pytest.mark.parametrize("prefix", ["", "http://"])
    def test_restart(self, tmp_path, prefix):
        base = tmp_path / "m"
        serving_models.save_version(base, 1, 1)
        ports = [free_port(), free_port()]
        options = ServerOptions(grpc_port=ports[0], rest_port=ports[1])
        client = serving.Client(f"{prefix}127.0.0.1:{ports[1 if prefix else 0]}", deadline=60)
        expected = serving_models.forward(serving_models.X, 1)
        with LocalServer(ModelOptions(base), options):
            close_to(client.forward(serving_models.X), expected)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            answer = thread.submit(client.forward, serving_models.X)
            time.sleep(0.3)
            assert not answer.done()
            with LocalServer(ModelOptions(base), options):
                close_to(answer.result(60), expected)

    def test_wait_until_ready(self, tmp_path, monkeypatch):
        base = tmp_path / "m"
        ports = [free_port(), free_port()]
        client = serving.Client(f"127.0.0.1:{ports[0]}")
        with pytest.raises(serving.ServingError, match=r"not ready after 0\.3 s: UNAVAILABLE"):
            client.wait_until_ready(0.3)

        def busy(*args):
            raise serving.ServingError("busy", "UNAVAILABLE")

        with monkeypatch.context() as patch:
            patch.setattr(client._connection.transport, "status", lambda *args: [VersionStatus(3, "AVAILABLE")])
            patch.setattr(client._connection.transport, "metadata", busy)
            start = time.monotonic()
            with pytest.raises(serving.ServingError, match=r"not ready after 0\.5 s: busy"):
                client.wait_until_ready(0.5)
            assert time.monotonic() - start < 10  # not the deadline of a request
        serving_models.save_version(base, 3)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            ready = thread.submit(client.wait_until_ready, 60)
            with LocalServer(ModelOptions(base), ServerOptions(grpc_port=ports[0], rest_port=ports[1])):
                assert ready.result(60).version == 3


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
