"""Whatever bytes clients send over either protocol: the embedded server refuses them as it should, and goes on."""

import contextlib
import http.client
import json
import random
import socket

import grpc
import numpy as np
import pytest
import serving_models
from google.protobuf import message
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2

from serving.local_server import LocalServer, ModelOptions, ServerOptions

X = serving_models.X
CALLS = 400
SECONDS = 120  # that an answer may take
LIMIT = 1 << 20
METHODS = [
    "/tensorflow.serving.PredictionService/Predict",
    "/tensorflow.serving.PredictionService/GetModelMetadata",
    "/tensorflow.serving.ModelService/GetModelStatus",
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
    "/grpc.health.v1.Health/Check",
]
# INTERNAL is what gRPC says of bytes that are no message.
GRPC_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}
REST_CODES = {200, 400, 404, 413, 501}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("fuzz") / "m"
    serving_models.save_version(base, 1)
    with LocalServer(ModelOptions(base, name="m"), ServerOptions(max_message_bytes=LIMIT)) as server:
        yield server


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


def call(channel, method, data):
    """The code of a call with these bytes."""
    try:
        channel.unary_unary(method)(data, timeout=SECONDS)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def rest(server, method, path, body=None, headers=None):
    """The status and the body of the answer."""
    connection = http.client.HTTPConnection(server.rest_address, timeout=SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def assert_it_still_serves(server, channel):
    request = serving_models.predict_request("m", "forward", x=X)
    response = predict_pb2.PredictResponse.FromString(
        channel.unary_unary(METHODS[0])(request.SerializeToString(), timeout=SECONDS)
    )
    expected = serving_models.forward(X, 1)
    np.testing.assert_allclose(np.reshape(response.outputs["output"].float_val, expected.shape), expected)
    body = json.dumps({"signature_name": "forward", "instances": X.tolist()})
    status, answer = rest(server, "POST", "/v1/models/m:predict", body)
    assert status == 200
    np.testing.assert_allclose(json.loads(answer)["predictions"], expected)


def mutated(data, rng):
    """The bytes with a few of them changed, removed, repeated or added."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randint(1, 8)]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(data)


def odd_request(rng):
    """A message that says something odd about its tensors."""
    names = rng.sample(["x", "x1", "x2", "", "\0", "y" * 1000], rng.randint(0, 3))
    signature = rng.choice(["", "forward", "ntk", "ntk_diagonal", "__saved_model_init_op", "nobody"])
    request = serving_models.predict_request(rng.choice(["m", "m", "m", "", "n"]), signature)
    for name in names:
        proto = request.inputs[name]
        proto.dtype = rng.choice([types_pb2.DT_FLOAT, *types_pb2.DataType.values()])
        for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 70, 300])):
            proto.tensor_shape.dim.add(size=rng.choice([0, 1, 2, 4, 4, 4, -1, -(2**63), 2**31, 2**62]))
        proto.tensor_shape.unknown_rank = rng.random() < 0.1
        if rng.random() < 0.5:
            proto.tensor_content = rng.randbytes(rng.choice([0, 1, 4, 16, 32, 1000]))
        if rng.random() < 0.5:
            proto.float_val.extend([rng.choice([0.0, float("nan"), 1e38])] * rng.randint(0, 20))
        if rng.random() < 0.3:
            proto.int_val.extend([rng.choice([0, -1, 2**31 - 1])] * rng.randint(0, 20))
        if rng.random() < 0.3:
            proto.string_val.extend([rng.randbytes(3)] * rng.randint(0, 20))
    if rng.random() < 0.2:
        request.output_filter.extend(rng.choices(["output", "ntk", "", "nobody"], k=2))
    if rng.random() < 0.2:
        request.model_spec.version.value = rng.choice([0, 1, -1, 2**63 - 1])
    return request


def test_grpc_bytes(server, channel):
    rng = random.Random(1)
    valid = serving_models.predict_request("m", "forward", x=X).SerializeToString()
    for _ in range(CALLS):
        method = rng.choice(METHODS)
        data = rng.choice([rng.randbytes(rng.randrange(200)), mutated(valid, rng), b""])
        assert call(channel, method, data) in GRPC_CODES | {"INTERNAL"}, (method, data)
    assert_it_still_serves(server, channel)


def test_grpc_tensors(server, channel):
    rng = random.Random(2)
    for _ in range(CALLS):
        request = odd_request(rng)
        try:
            data = request.SerializeToString()
        except message.EncodeError:
            continue
        code = call(channel, METHODS[0], data)
        # TF Serving's own code for a signature that is not to be predicted with.
        expected = GRPC_CODES | ({"INTERNAL"} if "init_op" in request.model_spec.signature_name else set())
        assert code in expected, request
    assert_it_still_serves(server, channel)


def odd_json(rng, depth=0):
    """A JSON value of any kind."""
    if depth > 4 or rng.random() < 0.5:
        return rng.choice([None, True, False, 0, -1, 1.5, 1e39, 2**70, "", "x", "\u20ac", {"b64": "AAAA"}, {"b64": 1}])
    if rng.random() < 0.6:
        return [odd_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = rng.choices(["x", "x1", "x2", "b64", "instances", ""], k=rng.randrange(4))
    return {key: odd_json(rng, depth + 1) for key in keys}


def test_rest_json(server, channel):
    rng = random.Random(3)
    valid = json.dumps({"signature_name": "forward", "instances": X.tolist()}).encode()
    for _ in range(CALLS):
        document = {rng.choice(["instances", "inputs"]): odd_json(rng)}
        if rng.random() < 0.8:
            document["signature_name"] = rng.choice(["forward", "ntk", "ntk_diagonal", "", 3, None])
        body = rng.choice(
            [
                json.dumps(document).encode(),
                mutated(valid, rng),
                rng.randbytes(rng.randrange(100)),
                b"[" * rng.choice([10, 500, 5000, 100_000]),
                b'{"signature_name": "forward", "inputs": ' + b"[" * 300 + b"]" * 300 + b"}",
            ]
        )
        status, answer = rest(server, "POST", "/v1/models/m:predict", body)
        assert status in REST_CODES, (body[:300], answer)
        assert status == 200 or set(json.loads(answer)) == {"error"}
    assert_it_still_serves(server, channel)


def test_rest_paths(server, channel):
    rng = random.Random(4)
    parts = ["/", "v1", "models", "m", "versions", "1", "labels", ":predict", "metadata", "..", "%2e%2e", "%00", "?a=b"]
    for _ in range(CALLS):
        path = "/" + rng.choice(["", "v1/models/"]) + "/".join(rng.choices(parts, k=rng.randint(1, 5)))
        method = rng.choice(["GET", "POST", "PUT", "HEAD", "OPTIONS", "PATCH", "DELETE", "TRACE", "X"])
        status, answer = rest(server, method, path, rng.choice([None, b"{}"]))
        assert status in REST_CODES | {405}, (method, path, answer)
        assert b"root:" not in answer
    assert_it_still_serves(server, channel)


@pytest.mark.parametrize("side", ["rest", "grpc"])
def test_bytes_that_are_no_protocol(server, channel, side):
    rng = random.Random(5)
    host, port = getattr(server, f"{side}_address").split(":")
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\n"
    for _ in range(CALLS // 5):
        data = rng.choice(
            [
                rng.randbytes(rng.randrange(1, 300)),
                mutated(head + b"Content-Length: 2\r\n\r\n{}", rng),
                head + b"Content-Length: 1000\r\n\r\n{",  # and goes away
                head + b"Content-Length: -1\r\n\r\n{}",
                head + b"Content-Length: 99999999999999999999\r\n\r\n{}",
                head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
                head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
                head + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
                head + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(100),
            ]
        )
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(data)
            if rng.random() < 0.5:
                connection.settimeout(0.05)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    assert not connection.recv(100).startswith(b"HTTP/1.1 5"), data
    assert_it_still_serves(server, channel)
