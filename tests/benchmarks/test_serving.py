"""The load test finds what is wrong, and nothing in a server that is right."""

import shutil

import numpy as np
import pytest
import serving_models

from benchmarks.serving import load, models
from serving.local_server import LocalServer, ModelOptions, ServerOptions
from serving.shared import reference


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two versions with different weights."""
    base = tmp_path_factory.mktemp("versions") / "linear"
    return [serving_models.save_version(base, version, version) for version in (1, 2)]


@pytest.fixture(scope="module")
def examples():
    (values,) = reference.examples([([None, serving_models.FEATURES], "float32")], 30)
    return values + np.arange(30, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def answers(versions, examples):
    return models.answers(versions, examples)


def test_load_with_a_swap(versions, examples, answers, tmp_path):
    base = tmp_path / "served"
    base.mkdir()
    shutil.copytree(versions[0], base / "1")

    def publish():
        shutil.copytree(versions[1], tmp_path / "2")
        (tmp_path / "2").rename(base / "2")

    with LocalServer(ModelOptions(base), ServerOptions(poll_seconds=0.1)) as server:
        outcome = load.run(
            [server.grpc_address, f"http://{server.rest_address}"],
            "default",
            examples,
            answers,
            requests=200,
            clients=4,
            seed=0,
            events=[(50, publish)],
            until_version=2,
        )
    assert not outcome.errors
    assert not outcome.wrong
    assert sum(outcome.versions.values()) >= 200
    assert set(outcome.versions) == {1, 2}
    assert {protocol for protocol, _ in outcome.seconds} == {"gRPC", "REST"}
    assert outcome.last_event > 0


def test_wrong_answers_are_seen(versions, examples, answers, tmp_path):
    """A server of other weights than those that are expected."""
    shutil.copytree(versions[0], tmp_path / "1")
    with LocalServer(ModelOptions(tmp_path)) as server:
        outcome = load.run([server.grpc_address], "default", examples, answers[1:], requests=20, clients=2, seed=0)
    empty = 20 - len(outcome.wrong)
    assert sum(outcome.versions.values()) == empty < 5  # of no examples there is nothing to be wrong


def test_errors_are_counted(examples, answers):
    outcome = load.run(["127.0.0.1:1"], "default", examples, answers, requests=3, clients=1, seed=0)
    assert len(outcome.errors) == 3
    assert not outcome.versions


def test_foreign_rows_are_seen(answers):
    one = answers[0]
    rows, columns = np.array([3, 1, 4]), np.array([0, 2])
    for signature in models.SIGNATURES:
        right = one.expected(signature, rows, columns)
        assert one.matches(right, signature, rows, columns)
        assert not one.matches(right[::-1], signature, rows, columns)
        assert not one.matches(right[:2], signature, rows, columns)


def test_versions_that_answer_the_same_are_refused(versions, examples):
    with pytest.raises(ValueError, match="answer the same"):
        models.answers([versions[0], versions[0]], examples)


def test_examples_that_answer_the_same_are_refused(versions, examples):
    with pytest.raises(ValueError, match="foreign rows would not be seen"):
        models.answers(versions[:1], examples[[0, 1, 0]])
