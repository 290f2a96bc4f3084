"""Requests sent again."""

import threading
import time

import pytest

from serving.client import retry
from serving.client.errors import ServingError
from serving.client.retry import with_retries


def failing(times, code="UNAVAILABLE"):
    """Fails so many times, then returns how often it was called, and with which seconds left."""
    seen = []

    def send(timeout):
        seen.append(timeout)
        if len(seen) <= times:
            raise ServingError("no", code)
        return seen

    return send


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)


def test_until_it_succeeds():
    seen = with_retries(failing(4), 10.0)
    assert len(seen) == 5
    assert seen == sorted(seen, reverse=True)  # what is left of the deadline
    assert all(0 < seconds <= 10 for seconds in seen)


def test_waits_grow_and_differ(monkeypatch):
    waits = []
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: waits.append(seconds))
    with_retries(failing(20), None, stop=stop)
    assert waits[3] > waits[0]
    assert max(waits) <= retry.LONGEST_WAIT
    assert len(set(waits)) == len(waits)


def test_other_errors_are_raised_at_once():
    send = failing(1, "INVALID_ARGUMENT")
    with pytest.raises(ServingError, match="no"):
        with_retries(send, 10.0)


def test_the_deadline_ends_it():
    start = time.monotonic()
    with pytest.raises(ServingError):
        with_retries(failing(10**9), 0.05)
    assert time.monotonic() - start < 5


def test_the_caller_may_give_up():
    calls = []
    with pytest.raises(ServingError):
        with_retries(failing(3), None, give_up=lambda error: calls.append(error) or True)
    assert len(calls) == 1


def test_a_set_event_ends_it():
    stop = threading.Event()
    stop.set()
    with pytest.raises(ServingError):
        with_retries(failing(10**9), None, stop=stop)
