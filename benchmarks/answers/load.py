"""Random requests to a server of answers from many clients at once, each row compared."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving import Client

NAMES = ("predict", "nearest", "support")
MOST = 64  # rows of a request
RTOL, ATOL = 1e-3, 1e-4  # by which rows may differ that were computed in another block
TIES = 0.01  # of the ids of a request, which may be in another order where similarities are equal


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
