import contextlib
import threading
import time

import grpc
import pytest

from serving.local_server.admission import Admission
from serving.local_server.errors import OverloadedError, ServingError

FOREVER = float("inf")


@contextlib.contextmanager
def slot(admission, deadline=FOREVER):
    with admission.admitted(), admission.place(deadline):
        yield


class Request(threading.Thread):
    """Holds a place until `finish`."""

    def __init__(self, admission, deadline=FOREVER):
        super().__init__(daemon=True)
        self.admission, self.deadline = admission, deadline
        self.admitted, self.finish, self.error = threading.Event(), threading.Event(), None
        self.start()

    def run(self):
        try:
            with slot(self.admission, self.deadline):
                self.admitted.set()
                self.finish.wait(10)
        except ServingError as error:
            self.error = error


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_no_more_than_so_many_compute_and_so_many_wait():
    admission = Admission(concurrency=2, queue=1)
    running = [Request(admission), Request(admission)]
    assert all(request.admitted.wait(10) for request in running)
    waiting = Request(admission)
    wait_until(lambda: admission.waiting == 1)
    with pytest.raises(OverloadedError, match="and 1 more wait") as error, slot(admission):
        pass
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.value.http_status == 503
    assert (admission.running, admission.waiting) == (2, 1)
    assert not waiting.admitted.is_set()
    running[0].finish.set()
    assert waiting.admitted.wait(10)
    for request in (*running, waiting):
        request.finish.set()
        request.join(10)
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_deadline_ends_the_wait_and_gives_the_place_in_the_queue_back():
    admission = Admission(concurrency=1, queue=1)
    running = Request(admission)
    assert running.admitted.wait(10)
    for _ in range(2):
        with pytest.raises(ServingError) as error, slot(admission, time.monotonic() + 0.01):
            pass
        assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    running.finish.set()
    running.join(10)
    with slot(admission):
        assert admission.running == 1


def test_without_a_queue_a_request_is_taken_or_refused():
    admission = Admission(concurrency=1, queue=0)
    with slot(admission), pytest.raises(OverloadedError), slot(admission):
        pass
    with slot(admission):
        pass


def test_a_request_that_fails_gives_its_place_back():
    admission = Admission(concurrency=1, queue=0)
    with pytest.raises(ZeroDivisionError), slot(admission):
        raise ZeroDivisionError
    assert admission.running == 0
