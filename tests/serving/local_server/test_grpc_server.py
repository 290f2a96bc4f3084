import concurrent.futures
import time

import grpc
import numpy as np
import pytest
import serving_models
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.local_server import LocalServer, ModelOptions, ServerOptions

X = serving_models.X
LIMIT = 100_000


@pytest.fixture(scope="module")
def server(version):
    options = ServerOptions(max_message_bytes=LIMIT, max_concurrency=1, max_queue=1)
    with LocalServer(ModelOptions(version.parent, name="m"), options) as server:
        yield server


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address, [("grpc.max_receive_message_length", -1)]) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    yield stub
    response = stub.Predict(serving_models.predict_request("m", "forward", x=X), timeout=30)
    assert response.outputs["output"].tensor_shape.dim[0].size == 3, "it still serves"


def request(signature, **inputs):
    return serving_models.predict_request("m", signature, **inputs)


def code(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_messages_larger_than_the_limit(stub):
    assert code(stub.Predict, request("forward", x=np.zeros((LIMIT, 4), "f")), timeout=30) == "RESOURCE_EXHAUSTED"
    x = np.zeros((200, 4), "f")
    assert code(stub.Predict, request("ntk", x1=x, x2=x), timeout=30) == "RESOURCE_EXHAUSTED"


def test_a_tensor_larger_than_the_limit_in_a_small_message(stub):
    asked = request("forward", x=np.zeros((1, 4), "f"))
    asked.inputs["x"].tensor_shape.dim[0].size = LIMIT
    asked.inputs["x"].ClearField("tensor_content")
    assert code(stub.Predict, asked, timeout=30) == "INVALID_ARGUMENT"


def test_more_requests_than_there_are_places(stub):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        busy = request("busy", seconds=np.float32(0.2))
        codes = list(pool.map(lambda _: code(stub.Predict, busy, timeout=30), range(6)))
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") >= 2


def test_a_deadline_in_the_queue(server, stub):
    running = stub.Predict.future(request("busy", seconds=np.float32(0.5)), timeout=30)
    time.sleep(0.1)
    assert code(stub.Predict, request("forward", x=X), timeout=0.1) == "DEADLINE_EXCEEDED"
    assert running.result().outputs["seconds"].float_val[0] >= 0.5


def test_a_request_that_nobody_waits_for_any_more_is_not_computed(server, stub):
    running = stub.Predict.future(request("busy", seconds=np.float32(0.3)), timeout=30)
    time.sleep(0.1)
    begin = time.monotonic()
    waiting = stub.Predict.future(request("busy", seconds=np.float32(20)), timeout=60)
    time.sleep(0.1)
    waiting.cancel()
    running.result()
    time.sleep(0.1)
    stub.Predict(request("forward", x=X), timeout=30)
    assert time.monotonic() - begin < 15


def test_status_and_health_are_answered_while_all_places_are_taken(channel, stub):
    running = [stub.Predict.future(request("busy", seconds=np.float32(0.4)), timeout=30) for _ in range(2)]
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert not all(call.done() for call in running)
    for call in running:
        call.result()


def test_no_request_can_name_a_path(channel, stub):
    reload = model_management_pb2.ReloadConfigRequest()
    reload.config.model_config_list.config.add(name="m", base_path="/")
    service = model_service_pb2_grpc.ModelServiceStub(channel)
    assert code(service.HandleReloadConfigRequest, reload, timeout=30) == "UNIMPLEMENTED"


def test_bytes_that_are_no_message(channel, stub):
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert code(predict, b"\xff\xff", timeout=30) == "INTERNAL"


def test_a_request_without_a_model_spec(stub):
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(predict_pb2.PredictRequest(), timeout=30)
    assert (error.value.code().name, error.value.details()) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def test_a_long_error_is_cut_as_tf_serving_cuts_it(stub):
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(request("forward", **{"y" * 5000: X}), timeout=30)
    assert error.value.details().endswith("y...TRUNCATED")
    assert len(error.value.details()) == 1024 + len("...TRUNCATED")
