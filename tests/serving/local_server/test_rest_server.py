import concurrent.futures
import gzip
import http.client
import json
import socket
import time

import numpy as np
import pytest
import serving_models

from serving.local_server import LocalServer, ModelOptions, ServerOptions

X = serving_models.X
LIMIT = 10_000
FORWARD = json.dumps({"signature_name": "forward", "instances": X.tolist()}).encode()
PATH = "/v1/models/m:predict"


def busy(seconds):
    return json.dumps({"signature_name": "busy", "inputs": seconds}).encode()


@pytest.fixture(scope="module")
def server(version):
    options = ServerOptions(
        max_message_bytes=LIMIT, max_concurrency=1, max_queue=1, body_seconds=0.3, rest_timeout_seconds=1.0
    )
    with LocalServer(ModelOptions(version.parent, name="m"), options) as server:
        yield server


@pytest.fixture
def ask(server):
    def ask(body=FORWARD, path=PATH, method="POST", headers=None):
        connection = http.client.HTTPConnection(server.rest_address, timeout=30)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, text.decode()

    yield ask
    status, answer = ask()
    assert status == 200, "it still serves"
    np.testing.assert_allclose(json.loads(answer)["predictions"], serving_models.forward(X, 1))


def raw(server, data, rest=b""):
    """The first line that the server sends after these bytes, and how long it took."""
    host, port = server.rest_address.split(":")
    begin = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        if rest:
            time.sleep(0.05)
            connection.sendall(rest)
        received = connection.recv(100).decode()
    return received.partition("\r\n")[0], time.monotonic() - begin


def head(length):
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n".encode()


def test_a_body_larger_than_the_limit(ask):
    status, answer = ask(b" " * (LIMIT + 1))
    assert status == 413
    assert json.loads(answer) == {"error": f"Request body larger than the limit of {LIMIT} bytes"}


def test_a_body_in_pieces_larger_than_the_limit(ask):
    status, _ = ask(iter([b" " * 5000] * 3))
    assert status == 413


def test_a_compressed_body(ask):
    status, _ = ask(gzip.compress(FORWARD), headers={"Content-Encoding": "gzip"})
    assert status == 200


def test_a_compressed_body_larger_than_the_limit_when_it_is_not(ask):
    status, _ = ask(gzip.compress(b" " * 1_000_000), headers={"Content-Encoding": "gzip"})
    assert status == 413


def test_a_body_that_is_not_what_its_encoding_says(ask):
    status, answer = ask(FORWARD, headers={"Content-Encoding": "gzip"})
    assert status == 400
    assert "error" in json.loads(answer)


def test_a_body_that_does_not_come(server, ask):
    line, seconds = raw(server, head(100) + b"\r\n{")
    assert line == "HTTP/1.1 408 Request Timeout"
    assert seconds < 10


def test_a_body_that_comes_in_two_pieces(server, ask):
    line, _ = raw(server, head(len(FORWARD)) + b"\r\n" + FORWARD[:10], FORWARD[10:])
    assert line == "HTTP/1.1 200 OK"


def test_a_client_that_asks_before_it_sends(server, ask):
    line, _ = raw(server, head(len(FORWARD)) + b"Expect: 100-continue\r\n\r\n", FORWARD)
    assert line == "HTTP/1.1 100 Continue"


def test_clients_that_go_away(server, ask):
    host, port = server.rest_address.split(":")
    for data in (b"", head(100), head(100) + b"\r\n{", head(len(FORWARD)) + b"\r\n" + FORWARD):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(data)


def test_an_answer_that_takes_too_long(ask):
    status, answer = ask(busy(1.5))
    assert (status, json.loads(answer)) == (504, {"error": "No answer within 1 s"})


def test_more_requests_than_there_are_places(ask):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(busy(0.2)), range(6)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 2
    refused = next(json.loads(answer)["error"] for status, answer in answers if status == 503)
    assert "Try again later" in refused


def test_more_requests_than_are_received(server, ask):
    host, port = server.rest_address.split(":")
    connections = [socket.create_connection((host, int(port)), timeout=30) for _ in range(20)]
    for connection in connections:
        connection.sendall(head(100) + b"\r\n{")
    answers = [connection.recv(100).split()[1] for connection in connections]
    assert set(answers) == {b"503", b"408"}
    for connection in connections:
        connection.close()


def test_status_and_metrics_are_answered_while_all_places_are_taken(ask):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(ask, busy(0.4)) for _ in range(2)]
        time.sleep(0.1)
        assert ask(None, "/v1/models/m", "GET")[0] == 200
        status, page = ask(None, "/monitoring/prometheus/metrics", "GET")
        assert status == 200
        assert ':tensorflow:serving:request_count{model_name="m"' in page
        assert "ntk_serving_running 1.0" in page
        assert "ntk_serving_waiting 1.0" in page
        assert [request.result()[0] for request in requests] == [200, 200]


def test_many_requests_on_one_connection(server, ask):
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    for _ in range(5):
        connection.request("POST", PATH, FORWARD)
        assert connection.getresponse().read()
    connection.request("POST", PATH, b"wrong")
    assert connection.getresponse().read()
    connection.request("POST", PATH, FORWARD)
    assert connection.getresponse().status == 200
    connection.close()


def test_classify_and_regress_are_not_of_this_server(ask):
    for verb in ("classify", "regress"):
        status, answer = ask(b'{"examples": []}', f"/v1/models/m:{verb}")
        assert status == 501
        assert f":{verb}" in json.loads(answer)["error"]
