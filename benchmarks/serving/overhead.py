"""What client and server add to the computation."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.models import pool
from benchmarks.serving.process import ServerProcess
from serving import Client
from serving.client.tiles import pair_tiles

_SIZES = (1, 8)  # examples a side
_TILE_LIMIT = 4 * 2**20  # gRPC's own limit for a message
_LARGE = 2000


def small_requests(
    version: Path, server: ServerProcess, model: str, repetitions: int
) -> list[tuple[str, float, float]]:
    """Rows (what, median seconds, 90th percentile) of small kernels in process, by gRPC and by REST."""
    import tensorflow as tf

    signature = tf.saved_model.load(str(version)).signatures["ntk"]
    rows = []
    with Client(server.grpc_address, model=model) as grpc, Client(server.rest_address, model=model) as rest:
        ways: dict[str, Callable[[np.ndarray], Any]] = {
            "in process": lambda x: signature(x1=tf.constant(x), x2=tf.constant(x))["ntk"].numpy(),
            "gRPC": lambda x: grpc.kernel(x, x),
            "REST": lambda x: rest.kernel(x, x),
        }
        for size in _SIZES:
            x = pool(version, size)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(repetitions + 10):  # by turns, so that all see the same machine
                for name, ask in ways.items():
                    seconds[name].append(_timed(functools.partial(ask, x))[0])
            for name, values in seconds.items():
                p50, p90 = np.percentile(values[10:], [50, 90])
                rows.append((f"kernel {size} × {size}, {name}", float(p50), float(p90)))
    return rows


def large_request(version: Path, server: ServerProcess, model: str) -> list[tuple[str, float]]:
    """Rows (what, seconds) of a large kernel: at once and in tiles, each in process and by requests."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(version))
    x1, x2 = np.split(pool(version, 2 * _LARGE), 2)
    tiles = pair_tiles(_LARGE, _LARGE, example=x1[0].nbytes, entry=x1.itemsize, limit=_TILE_LIMIT)

    def in_tiles() -> np.ndarray:
        result = np.empty((_LARGE, _LARGE), x1.dtype)
        for rows, columns in tiles:
            result[rows, columns] = loaded.ntk(x1[rows], x2[columns])
        return result

    title = f"kernel {_LARGE} × {_LARGE}"
    with (
        Client(server.grpc_address, model=model) as whole,
        Client(server.grpc_address, model=model, message_limit=_TILE_LIMIT) as tiled,
    ):
        ways: dict[str, Callable[[], np.ndarray]] = {
            "in process": lambda: loaded.ntk(x1, x2).numpy(),
            "gRPC, one request": lambda: whole.kernel(x1, x2),
            f"in process, {len(tiles)} tiles": in_tiles,
            f"gRPC, {len(tiles)} tiles of at most {_TILE_LIMIT >> 20} MiB": lambda: tiled.kernel(x1, x2),
        }
        rows, results = [], []
        for name, ask in ways.items():
            ask()
            seconds, result = min((_timed(ask) for _ in range(3)), key=lambda pair: pair[0])
            rows.append((f"{title}, {name}", seconds))
            results.append(result)
    largest = np.max(np.abs(results[0]))
    for (name, _), result in zip(rows, results, strict=True):
        if not np.max(np.abs(result - results[0])) <= 1e-5 * largest:
            raise AssertionError(f"{name} differs from the kernel in process")
    return rows


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
