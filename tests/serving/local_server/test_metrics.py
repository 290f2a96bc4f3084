import grpc
from absl import logging

from serving.local_server.metrics import Metrics

OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND


def lines(metrics):
    return metrics.page().decode().splitlines()


def test_requests_are_counted_and_timed_under_tf_servings_names():
    metrics = Metrics(["m"], log_requests=False)
    for _ in range(2):
        metrics.record("GRPC", "Predict", "m", OK, 0.001)
    metrics.record("REST", "predict", "m", NOT_FOUND, 0.5)
    page = lines(metrics)
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 2.0' in page
    assert ':tensorflow:serving:request_count{model_name="m",status="NOT_FOUND"} 1.0' in page
    labels = 'API="Predict",entrypoint="GRPC",model_name="m"'
    assert f":tensorflow:serving:request_latency_count{{{labels}}} 2.0" in page
    assert f":tensorflow:serving:request_latency_sum{{{labels}}} 2000.0" in page


def test_names_that_clients_invent_are_counted_together():
    metrics = Metrics(["m"], log_requests=False)
    for number in range(100):
        metrics.record("GRPC", "Predict", f"model{number}", NOT_FOUND, 0.0)
    assert ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"} 100.0' in lines(metrics)
    assert not any("model7" in line for line in lines(metrics))


def test_gauges_show_what_is_now():
    metrics, now = Metrics([], log_requests=False), [3]
    metrics.gauge("waiting", "Requests that wait.", lambda: now[0])
    assert "waiting 3.0" in lines(metrics)
    now[0] = 4
    assert "waiting 4.0" in lines(metrics)


def test_the_log_has_a_line_for_each_request_if_wanted(caplog):
    logging.set_verbosity(logging.INFO)
    with caplog.at_level("INFO", logger="absl"):
        Metrics(["m"], log_requests=False).record("GRPC", "Predict", "m", OK, 0.001)
        assert not caplog.messages
        Metrics(["m"], log_requests=True).record("GRPC", "Predict", "a\nb" + "c" * 1000, OK, 0.0015)
    (line,) = caplog.messages
    assert line.startswith(r"GRPC Predict 'a\nbccc")
    assert line.endswith("' OK 1.5 ms")
    assert len(line) < 150
