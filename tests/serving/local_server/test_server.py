import concurrent.futures
import http.client
import json
import socket
import time

import grpc
import numpy as np
import pytest
import serving_models
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc

from serving.local_server import LocalServer, ModelOptions, ServerOptions
from serving.local_server.errors import ServingError

X = serving_models.X


def predict(address, signature="forward", **inputs):
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return stub.Predict(serving_models.predict_request("m", signature, **inputs), timeout=30).outputs


def predict_json(address, signature, inputs):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/v1/models/m:predict", json.dumps({"signature_name": signature, "inputs": inputs}))
    answer = json.load(connection.getresponse())
    connection.close()
    return answer


def test_a_path_is_a_model_with_the_name_default(version):
    with LocalServer(version.parent) as server:
        connection = http.client.HTTPConnection(server.rest_address, timeout=30)
        connection.request("GET", "/v1/models/default")
        assert connection.getresponse().status == 200
        connection.close()
        for address in (server.grpc_address, server.rest_address):
            assert address.startswith("127.0.0.1:")
            assert not address.endswith(":0")


def test_several_models(version, tmp_path):
    serving_models.save_version(tmp_path / "other", 3, 2)
    models = [ModelOptions(version.parent, name="m"), ModelOptions(tmp_path / "other", name="n")]
    with LocalServer(models) as server, grpc.insecure_channel(server.grpc_address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for name, number, scale in (("m", 1, 1), ("n", 3, 2)):
            response = stub.Predict(serving_models.predict_request(name, "forward", x=X), timeout=30)
            assert response.model_spec.version.value == number
            assert response.outputs["output"].float_val[0] == serving_models.forward(X, scale)[0, 0]


def test_two_models_of_one_name(version):
    with pytest.raises(ValueError, match="expected a name of its own for each model"):
        LocalServer([ModelOptions(version.parent), ModelOptions(version.parent)])


@pytest.mark.parametrize("found", ["nothing", "no version", "a bad version"])
def test_nothing_to_serve_is_an_error_that_says_what_there_is(tmp_path, found):
    base = tmp_path / "base"
    expected = "no directory with a number for a name"
    if found != "nothing":
        base.mkdir()
    if found == "a bad version":
        (base / "4").mkdir()
        expected = "version 4: .*"
    server = LocalServer(base)
    with pytest.raises(RuntimeError, match=f"^expected a SavedModel in .*/base/1, /2, ..., found {expected}"):
        server.start()


@pytest.mark.parametrize("which", ["grpc_port", "rest_port"])
def test_a_port_that_is_taken(version, which):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port} for"):
            LocalServer(version.parent, ServerOptions(**{which: port})).start()
    with LocalServer(version.parent, ServerOptions(**{which: port})):
        pass


def test_at_the_end_requests_finish_and_no_more_are_taken(version):
    server = LocalServer(ModelOptions(version.parent, name="m"))
    server.start()
    (servable,) = (handle.servable for handle in server.models.managers()[0]._serving.values())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        by_grpc = pool.submit(predict, server.grpc_address, "busy", seconds=np.float32(0.5))
        by_rest = pool.submit(predict_json, server.rest_address, "busy", 0.5)
        time.sleep(0.2)
        server.stop()
        assert by_grpc.result()["seconds"].float_val[0] >= 0.5
        assert by_rest.result()["outputs"] >= 0.5
    for address in (server.grpc_address, server.rest_address):
        host, port = address.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
    with pytest.raises(ServingError, match="closed"):
        servable.run("forward", {"x": X})


def test_a_request_that_does_not_end_does_not_hold_up_the_end(version):
    server = LocalServer(ModelOptions(version.parent, name="m"), ServerOptions(shutdown_seconds=0.2))
    server.start()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(predict, server.grpc_address, "busy", seconds=np.float32(1.5))
        time.sleep(0.2)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 1.2
        with pytest.raises(grpc.RpcError):
            running.result()
    time.sleep(1.5)  # until the computation, which nothing can interrupt, has ended


def test_health_says_when_the_end_is_near(version):
    with LocalServer(version.parent) as server, grpc.insecure_channel(server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(server.stop)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
            stopped.result()


def test_warmup_is_replayed_before_a_version_is_served(tmp_path):
    base = tmp_path / "m"
    record = serving_models.warmup_record("busy", seconds=np.float32(0.4))
    serving_models.save_version(base, 1, warmup=[record])
    begin = time.monotonic()
    with LocalServer(ModelOptions(base, name="m")):
        assert time.monotonic() - begin > 0.4
    begin = time.monotonic()
    with LocalServer(ModelOptions(base, name="m"), ServerOptions(warmup=False)):
        pass
