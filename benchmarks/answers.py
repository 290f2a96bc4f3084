"""Asks a server of answers from many clients at once, and checks every row.

    python -m benchmarks.answers demo/digits_answers --data=demo/digits_test.npz [--requests=10000] [--clients=16]

Requests are of random rows of the data, 1 to 64, to `predict`, `nearest` and `support` in turn of chance, half of the
clients by gRPC, half by REST. Each row of an answer is compared with that of the SavedModel in this process. By default
the embedded server is started; with --address a running one is asked, which serves that directory. The exit code is 0
if every row was its own example's.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from benchmarks import latencies
from benchmarks.serving.process import ServerProcess
from serving import Client
from serving.shared.exports import version_directories

NAMES = ("predict", "nearest", "support")
MOST = 64  # rows of a request
RTOL, ATOL = 1e-3, 1e-4  # by which rows may differ that were computed in another block
TIES = 0.01  # of the ids of a request, which may be in another order where similarities are equal

_DATA = flags.DEFINE_string("data", None, "A .npz file with the input x of the examples to ask about.", required=True)
_REQUESTS = flags.DEFINE_integer("requests", 10_000, "Requests in all.", lower_bound=1)
_CLIENTS = flags.DEFINE_integer("clients", 16, "Clients at the same time.", lower_bound=1)
_ADDRESS = flags.DEFINE_string("address", None, "HOST:PORT[,http://HOST:PORT] of a running server.")
_MODEL = flags.DEFINE_string("model_name", "answers", "The model's name on the server.")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the requests came to.

    Attributes:
      seconds: of each request, by (protocol, signature).
      wrong: signature and output of each answer with a wrong row.
      elapsed: seconds in all.
    """

    seconds: Mapping[tuple[str, str], Sequence[float]]
    wrong: Sequence[tuple[str, str]]
    elapsed: float


def expected_of(model: Any, x: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """All answers of a loaded SavedModel about examples (n, ...), by signature and output."""
    return {name: {key: value.numpy() for key, value in getattr(model, name)(x).items()} for name in NAMES}


def run(
    addresses: Sequence[str],
    model: str,
    x: np.ndarray,
    expected: Mapping[str, Mapping[str, np.ndarray]],
    *,
    requests: int,
    clients: int,
) -> Outcome:
    """Sends random requests, and compares each row.

    Args:
      addresses: the clients take turns with these.
      model: its name on the server.
      x: examples (n, ...) that requests are made of.
      expected: `expected_of` these.
      requests: in all.
      clients: threads, each with a connection of its own.
    """
    numbers = itertools.count()
    seconds: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    wrong: list[tuple[str, str]] = []

    def work(address: str) -> None:
        protocol = "REST" if address.startswith("http") else "gRPC"
        with Client(address, model=model, deadline=300.0) as client:
            while (number := next(numbers)) < requests:
                rng = np.random.default_rng(number)
                name = NAMES[rng.integers(len(NAMES))]
                rows = rng.integers(0, len(x), rng.integers(1, MOST + 1))
                start = time.perf_counter()
                answer = getattr(client, name)(x[rows])
                seconds[protocol, name].append(time.perf_counter() - start)
                wrong.extend(
                    (name, key) for key, value in expected[name].items() if not _fits(answer[key], value[rows])
                )

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(work, addresses[k % len(addresses)]) for k in range(clients)]
        for client in working:
            client.result()
    return Outcome(seconds, wrong, time.perf_counter() - start)


def _fits(received: np.ndarray, expected: np.ndarray) -> bool:
    if received.shape != expected.shape:
        return False
    if expected.dtype.kind == "f":
        return np.allclose(received, expected, rtol=RTOL, atol=ATOL)
    return bool(np.mean(received != expected) <= TIES)


def main(argv: Sequence[str]) -> int:
    """Runs what the flags say; returns the exit code."""
    import tensorflow as tf

    logging.set_verbosity(logging.WARNING)
    if len(argv) != 2:
        raise app.UsageError(f"expected one directory of answers, received {argv[1:]}")
    base_dir = pathlib.Path(argv[1])
    x = np.load(_DATA.value)["x"]
    expected = expected_of(tf.saved_model.load(str(version_directories(base_dir)[-1])), x)
    with tempfile.TemporaryDirectory() as directory:
        if _ADDRESS.value:
            outcome = _asked(_ADDRESS.value.split(","), x, expected)
        else:
            server = ServerProcess(base_dir, _MODEL.value, pathlib.Path(directory) / "server.log")
            try:
                server.wait_until_ready()
                outcome = _asked([server.grpc_address, server.rest_address], x, expected)
            finally:
                server.stop()
    print(f"{'requests':<24}{_REQUESTS.value:,}, {len(outcome.wrong)} with a wrong row")
    print(f"{'throughput':<24}{_REQUESTS.value / outcome.elapsed:.0f} requests/s by {_CLIENTS.value} clients")
    latencies.show(outcome.seconds)
    return 1 if outcome.wrong else 0


def _asked(addresses: Sequence[str], x: np.ndarray, expected: Any) -> Outcome:
    return run(addresses, _MODEL.value, x, expected, requests=_REQUESTS.value, clients=_CLIENTS.value)


if __name__ == "__main__":
    sys.exit(app.run(main))
