"""Several calls at once."""

import threading

import pytest

from serving.client.parallel import run_all


def test_all_are_run_and_so_many_at_a_time():
    running, most, done = 0, 0, []
    lock, both = threading.Lock(), threading.Barrier(3, timeout=30)

    def task(k):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if k < 3:
            both.wait()  # only if three run together
        with lock:
            running -= 1
            done.append(k)

    assert sum(1 for _ in run_all([lambda k=k: task(k) for k in range(30)], 3, threading.Event())) == 30
    assert sorted(done) == list(range(30))
    assert most == 3


def test_the_first_error_ends_it():
    begun = []
    stop = threading.Event()

    def task(k):
        begun.append(k)
        if k == 2:
            raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        list(run_all([lambda k=k: task(k) for k in range(1000)], 1, stop))
    assert stop.is_set()
    assert begun == [0, 1, 2]


def test_leaving_early_ends_it():
    begun, stop, release = [], threading.Event(), threading.Event()

    def task(k):
        begun.append(k)
        if k:
            assert release.wait(30)

    steps = run_all([lambda k=k: task(k) for k in range(10)], 2, stop)
    next(steps)
    steps.close()  # returns though tasks are under way
    assert stop.is_set()
    release.set()
    assert len(begun) <= 3


def test_nothing_to_do():
    assert list(run_all([], 4, threading.Event())) == []
