"""Requests of several clients joined by the embedded server, by the rules of TF Serving's batching_session.cc."""

import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import serving_models

from serving.local_server.admission import Admission
from serving.local_server.batching import Batching
from serving.local_server.errors import ServingError
from serving.local_server.servable import Servable
from serving.shared import batching_parameters
from serving.shared.batching_parameters import BatchingParameters

FOREVER = float("inf")


class Recorded(Servable):
    """A servable that knows the rows of each of its calls."""

    def __init__(self, path, parameters):
        super().__init__(path, 1, parameters)
        self.calls = []
        self.may_run = threading.Event()
        self.may_run.set()

    def run(self, name, inputs, outputs=()):
        self.calls.append(len(next(iter(inputs.values()))))
        assert self.may_run.wait(30)
        return super().run(name, inputs, outputs)


@pytest.fixture
def make(version):
    """Makes a function that asks joined, from parameters; its servable is an attribute."""
    made = []

    def make(concurrency=1, **parameters):
        admission = Admission(concurrency, 64)
        servable = Recorded(version, BatchingParameters(**parameters))
        batching = Batching(admission, concurrency)
        made.append((servable, batching))

        def ask(signature, deadline=FOREVER, outputs=(), **inputs):
            return batching.run(servable, servable.batching, deadline, signature, inputs, outputs)

        ask.servable = servable
        return ask

    yield make
    for servable, batching in made:
        servable.may_run.set()
        batching.stop()
        servable.close()


def rows(number, seed):
    return np.random.default_rng(seed).normal(size=(number, serving_models.FEATURES)).astype(np.float32)


def together(ask, requests):
    """Asks at the same time; returns the answers or errors."""
    with futures.ThreadPoolExecutor(len(requests)) as pool:
        asked = [pool.submit(ask, "forward", x=x) for x in requests]
        return [task.exception() or task.result() for task in asked]


def test_what_comes_together_is_computed_together(make):
    ask = make(max_batch_size=64, batch_timeout_micros=500_000, allowed_batch_sizes=(4, 16, 64))
    requests = [rows(n, n) for n in (1, 2, 5, 3)]
    for x, answer in zip(requests, together(ask, requests), strict=True):
        np.testing.assert_allclose(answer["output"], serving_models.forward(x, 1.0), rtol=1e-5, atol=1e-6)
    assert ask.servable.calls == [16]


def test_a_full_batch_does_not_wait(make):
    ask = make(max_batch_size=4, batch_timeout_micros=60_000_000)
    answers = together(ask, [rows(1, n) for n in range(8)])
    assert all(answer["output"].shape == (1, serving_models.OUTPUTS) for answer in answers)
    assert ask.servable.calls == [4, 4]


def test_what_comes_while_others_compute_waits_for_a_place(make):
    """Without any timeout."""
    ask = make(max_batch_size=64)
    ask.servable.may_run.clear()
    with futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, "forward", x=rows(1, 0))]
        while not ask.servable.calls:
            time.sleep(0.001)
        asked += [pool.submit(ask, "forward", x=rows(2, n)) for n in range(5)]
        time.sleep(0.2)
        ask.servable.may_run.set()
        assert [len(task.result()["output"]) for task in asked] == [1, 2, 2, 2, 2, 2]
    assert ask.servable.calls == [1, 10]


def test_signatures_and_outputs_are_not_mixed(make):
    ask = make(max_batch_size=64, batch_timeout_micros=200_000)
    x = np.array(["a", "bc"], object)
    with futures.ThreadPoolExecutor(3) as pool:
        texts, lengths, forward = (
            pool.submit(ask, "text", x=x),
            pool.submit(ask, "text", outputs=("length",), x=x),
            pool.submit(ask, "forward", x=rows(2, 0)),
        )
        assert texts.result()["y_bytes"].tolist() == [b"a", b"bc"]
        assert {name: array.tolist() for name, array in lengths.result().items()} == {"length": [1, 2]}
        assert forward.result()["output"].shape == (2, serving_models.OUTPUTS)
    assert ask.servable.calls == [2, 2, 2]


def test_a_wrong_request_fails_alone(make):
    ask = make(max_batch_size=64, batch_timeout_micros=200_000)
    good, wrong = rows(2, 0), rows(2, 0)[:, :-1]
    answers = together(ask, [good, wrong, good, good.astype(np.float64)])
    assert [isinstance(answer, ServingError) for answer in answers] == [False, True, False, True]
    np.testing.assert_array_equal(answers[0]["output"], answers[2]["output"])


@pytest.mark.parametrize(
    ("output", "message"),
    [(np.zeros(3), "0th dimension does not equal the sum"), (np.array(0.0), "has 0 dimensions")],
)
def test_answers_that_cannot_be_split(make, monkeypatch, output, message):
    ask = make(max_batch_size=64)
    monkeypatch.setattr(ask.servable, "run", lambda name, inputs, outputs: {"y": output})
    with pytest.raises(ServingError, match=message) as error:
        ask("forward", x=rows(2, 0))
    assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "at least one input tensor"),
        ({"x": np.float32(0)[()]}, "at least one dimension"),
        ({"x1": rows(2, 0), "x2": rows(3, 0)}, "equal 0th-dimension size"),
        ({"x": rows(9, 0)}, "Task size 9 is larger than maximum input batch size 8"),
    ],
)
def test_what_cannot_be_joined(make, inputs, message):
    ask = make(max_batch_size=8)
    with pytest.raises(ServingError, match=message) as error:
        ask("forward", **{name: np.asarray(value) for name, value in inputs.items()})
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_no_rows_are_computed_alone(make):
    assert make(max_batch_size=8)("forward", x=rows(0, 0))["output"].shape == (0, serving_models.OUTPUTS)


def test_a_deadline_ends_the_wait_and_not_that_of_others(make):
    ask = make(max_batch_size=64, batch_timeout_micros=300_000)
    with futures.ThreadPoolExecutor(2) as pool:
        patient = pool.submit(ask, "forward", x=rows(1, 0))
        hasty = pool.submit(ask, "forward", time.monotonic() + 0.05, x=rows(1, 1))
        with pytest.raises(ServingError, match="timeout exceeded") as error:
            hasty.result()
        assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert patient.result()["output"].shape == (1, serving_models.OUTPUTS)
    assert ask.servable.calls == [1]


class TestParameters:
    def write(self, directory, text):
        (directory / batching_parameters.FILE).write_text(text)
        return batching_parameters.of_version(directory)

    def test_are_read_as_they_were_written(self, tmp_path):
        assert self.write(tmp_path, str(batching_parameters.of_rows())) == batching_parameters.of_rows()

    def test_of_tf_serving_by_default(self, tmp_path):
        assert self.write(tmp_path, "num_batch_threads { value: 3 }") == BatchingParameters()
        assert batching_parameters.of_version(tmp_path / "elsewhere") is None

    @pytest.mark.parametrize("sizes", [[1, 2], [8, 4], [4, 4, 8]])
    def test_sizes_that_tf_serving_refuses(self, tmp_path, sizes):
        text = "max_batch_size { value: 8 }" + "".join(f"allowed_batch_sizes: {size}\n" for size in sizes)
        with pytest.raises(ValueError, match="expected allowed_batch_sizes to increase up to max_batch_size, 8"):
            self.write(tmp_path, text)

    def test_what_is_no_text_format(self, tmp_path):
        with pytest.raises(ValueError, match="expected BatchingParameters in text format"):
            self.write(tmp_path, "max_batch_size 8")
