"""Answers as users make them: that they are calibrated, and that none is another caller's."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.answers import load
from examples import diabetes_intervals
from serving import Client
from serving.local_server import LocalServer, ModelOptions, ServerOptions

CLIENTS, REQUESTS = 16, 320


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    """The example's directory."""
    directory = tmp_path_factory.mktemp("diabetes")
    assert diabetes_intervals.main([str(directory)]) == 0
    return directory


def test_intervals_hold_what_they_promise(diabetes):
    """To 8 points, of patients that neither network nor kernel has seen."""
    model = tf.saved_model.load(str(diabetes / "answers/1"))
    _, (x, y) = diabetes_intervals.patients()
    predicted = model.predict(x)
    errors, deviations = np.abs(predicted["mean"] - y), np.sqrt(predicted["variance"])[:, None]
    assert np.mean(errors <= deviations) == pytest.approx(0.68, abs=0.08)
    assert np.mean(errors <= 2 * deviations) == pytest.approx(0.95, abs=0.08)
    assert np.mean(errors**2) <= 1.02 * np.mean((model.forward(x)["output"] - y) ** 2)


def test_mixed_requests_of_many_clients(diabetes):
    """Every row is that of its own example, though requests are joined."""
    model = tf.saved_model.load(str(diabetes / "answers/1"))
    (x, _), (others, _) = diabetes_intervals.patients()
    x = np.concatenate([x, others])
    expected = load.expected_of(model, x)
    answers = ModelOptions(diabetes / "answers", "answers")
    with LocalServer([answers], ServerOptions(batching=True)) as server:
        addresses = (server.grpc_address, f"http://{server.rest_address}")
        with Client(addresses[0], model="answers") as client:
            client.wait_until_ready()
        outcome = load.run(addresses, "answers", x, expected, requests=REQUESTS, clients=CLIENTS)
    assert outcome.wrong == []
    assert sum(map(len, outcome.seconds.values())) == REQUESTS
