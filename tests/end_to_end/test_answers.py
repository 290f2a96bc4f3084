"""Answers as users make them: that they are calibrated, and that none is another caller's."""

import concurrent.futures

import numpy as np
import pytest
import tensorflow as tf

from examples import diabetes_intervals
from serving import Client
from serving.local_server import LocalServer, ModelOptions

CLIENTS, REQUESTS, MOST = 16, 20, 64


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
    """Every row is that of its own example."""
    model = tf.saved_model.load(str(diabetes / "answers/1"))
    (x, _), (others, _) = diabetes_intervals.patients()
    x = np.concatenate([x, others])
    names = ("predict", "nearest", "support")
    expected = {name: {k: v.numpy() for k, v in getattr(model, name)(x).items()} for name in names}

    def ask(seed, address):
        rng, wrong = np.random.default_rng(seed), []
        with Client(address, model="answers") as client:
            for _ in range(REQUESTS):
                name, rows = rng.choice(names), rng.integers(0, len(x), rng.integers(1, MOST + 1))
                for key, value in getattr(client, str(name))(x[rows]).items():
                    known = expected[name][key][rows]
                    exact = key == "id"
                    fits = np.mean(value == known) > 0.99 if exact else np.allclose(value, known, rtol=1e-3, atol=1e-4)
                    wrong += [] if fits else [(name, key)]
        return wrong

    with LocalServer([ModelOptions(diabetes / "answers", "answers")]) as server:
        addresses = (server.grpc_address, f"http://{server.rest_address}")
        with Client(addresses[0], model="answers") as client:
            client.wait_until_ready()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(ask, seed, addresses[seed % 2]) for seed in range(CLIENTS)]
            assert [wrong for future in asked for wrong in future.result()] == []
