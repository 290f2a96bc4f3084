"""What servers answer, as messages that name the cure."""

import json
from pathlib import Path

import pytest
import serving_models

from serving.client.errors import ServingError, explain, is_transient, largest_batch, tidy

RECORDED = json.loads(
    (Path(serving_models.__file__).parent / "tf_serving" / "recorded.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    ("code", "answer", "cure"),
    [
        ("UNIMPLEMENTED", "XLA compilation disabled", "--xla_cpu_compilation_enabled=true"),
        ("FAILED_PRECONDITION", "XLA compilation disabled\n\t [[{{node ntk}}]]", "--xla_cpu_compilation_enabled=true"),
        ("INVALID_ARGUMENT", "Batching Run() input tensors must have equal 0th-dimension size", "without that flag"),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (5 vs. 4)", "message_limit"),
        ("RESOURCE_EXHAUSTED", "HTTP 413: Request body larger than the limit of 4 bytes", "message_limit"),
        ("RESOURCE_EXHAUSTED", "OOM when allocating tensor with shape[3]", "ran out of memory"),
        ("RESOURCE_EXHAUSTED", "Server Threadpool Exhausted", "--grpc_max_threads"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "Client(deadline=...)"),
        ("UNAVAILABLE", "Connection refused", "ntk-serve"),
        ("NOT_FOUND", "Servable not found for request: Latest(nope)", "--model_name"),
        ("UNIMPLEMENTED", "Method not found", "http://"),
    ],
)
def test_cures(code, answer, cure):
    error = explain(code, answer, address="host:1", about="model 'm'")
    assert cure in str(error)
    assert str(error).startswith(f"{code} from host:1 for model 'm': {answer.splitlines()[0]}")
    assert (error.code, error.answer) == (code, answer)


def test_other_errors_are_shown_as_they_are():
    error = explain("INVALID_ARGUMENT", "no such thing", address="host:1", about="model 'm'")
    assert str(error) == "INVALID_ARGUMENT from host:1 for model 'm': no such thing"


@pytest.mark.parametrize("name", [name for name, case in RECORDED["grpc"].items() if case["code"] != "OK"])
def test_what_tf_serving_answers_is_one_line(name):
    case = RECORDED["grpc"][name]
    error = explain(case["code"], case["details"], address="host:1", about="model 'm'")
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def test_assertions_of_the_model_are_unwrapped():
    answer = "assertion failed: [ntk x1: expected float32 (n, 4), received] [2 5]\n\t [[{{node core/Assert}}]]"
    assert tidy(answer) == "ntk x1: expected float32 (n, 4), received (2, 5)"
    assert tidy("assertion failed: [forward x: expected float32 (n, 4), received] [7]").endswith("received (7,)")


@pytest.mark.parametrize(
    ("code", "answer", "transient"),
    [
        ("UNAVAILABLE", "Connection refused", True),
        ("RESOURCE_EXHAUSTED", "Server Threadpool Exhausted", True),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", False),
        ("RESOURCE_EXHAUSTED", "Request body larger than the limit of 4 bytes", False),
        ("RESOURCE_EXHAUSTED", "OOM when allocating tensor", False),
        ("CANCELLED", "CANCELLED", True),  # by a server that stops
        ("DEADLINE_EXCEEDED", "", False),
        ("INVALID_ARGUMENT", "", False),
        ("INTERNAL", "", False),
    ],
)
def test_what_may_be_sent_again(code, answer, transient):
    assert is_transient(ServingError("", code, answer)) == transient


def test_largest_batch():
    answer = "Task size 300 is larger than maximum input batch size 256"
    assert largest_batch(ServingError("", "INVALID_ARGUMENT", answer)) == 256
    assert largest_batch(ServingError("", "INVALID_ARGUMENT", "other")) is None
