"""Drives a server of exported kernels with many clients, and measures what the way to it costs.

python -m benchmarks.serving [--requests=10000] [--clients=16] [--swaps=2] [--restarts=1] [--overhead]

Exports versions of a small CNN, serves them with the embedded server in a process of its own, and sends requests of
random sizes to random signatures, half of the clients by gRPC, half by REST, while versions are swapped and the server
is restarted. Each answer is compared with the in-process one. With --overhead kernels are timed instead. With --address
a running server is asked; --base_dir then names the model base directory that it serves. The exit code is 0 if every
answer was right and the server's memory stayed as it was.
"""

import functools
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags, logging

from benchmarks import latencies
from benchmarks.serving import load, models, overhead
from benchmarks.serving.process import ServerProcess
from serving.shared.exports import version_directories

_REQUESTS = flags.DEFINE_integer("requests", 10_000, "Requests in all.", lower_bound=1)
_CLIENTS = flags.DEFINE_integer("clients", 16, "Clients at the same time.", lower_bound=1)
_SWAPS = flags.DEFINE_integer("swaps", 2, "Versions that are added meanwhile.", lower_bound=0)
_RESTARTS = flags.DEFINE_integer("restarts", 1, "How often the server is restarted meanwhile.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the requests.")
_OVERHEAD = flags.DEFINE_bool("overhead", False, "Time small and large kernels instead.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 300, "Of each small request with --overhead.", lower_bound=1)
_BASE_DIR = flags.DEFINE_string("base_dir", None, "Exported versions of a model with one input; else some are made.")
_ADDRESS = flags.DEFINE_string("address", None, "HOST:PORT[,http://HOST:PORT] of a running server of --base_dir.")
_MODEL = flags.DEFINE_string("model_name", "default", "The model's name on the server.")
_GROWTH = flags.DEFINE_float("growth", 0.05, "How much the server's memory may grow after the last version came.")

_POOL = 48  # examples that requests are made of


def main(argv: Sequence[str]) -> int:
    """Runs what the flags say; returns the exit code."""
    logging.set_verbosity(logging.WARNING)
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if _ADDRESS.value and not _BASE_DIR.value:
        raise app.UsageError("--address needs --base_dir, to know what is right")
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        versions = _versions(folder)
        if _ADDRESS.value:
            return _load_running(versions)
        return _overhead(folder, versions[0]) if _OVERHEAD.value else _load(folder, versions)


def _versions(folder: pathlib.Path) -> list[pathlib.Path]:
    if _BASE_DIR.value:
        return version_directories(pathlib.Path(_BASE_DIR.value))
    _say("exporting")
    return models.export_versions(folder / "exported", 1 if _OVERHEAD.value else _SWAPS.value + 1)


def _load(folder: pathlib.Path, versions: list[pathlib.Path]) -> int:
    if len(versions) <= _SWAPS.value:
        raise app.UsageError(f"--swaps={_SWAPS.value} needs {_SWAPS.value + 1} versions, received {len(versions)}")
    examples = models.pool(versions[0], _POOL)
    answers = models.answers(versions[: _SWAPS.value + 1], examples)
    base_dir = folder / "served"
    _publish(versions[0], base_dir)
    server = ServerProcess(base_dir, _MODEL.value, folder / "server.log")
    try:
        server.wait_until_ready()
        _say("asking")
        codes: list[int] = []
        events: list[tuple[int, Callable[[], None]]] = []
        for k in range(1, _SWAPS.value + 1):
            at = _REQUESTS.value * k // (_SWAPS.value + 1)
            events.append((at, functools.partial(_publish, versions[k], base_dir)))
        for k in range(_RESTARTS.value):
            events.append(
                (_REQUESTS.value * (2 * k + 1) // (2 * _RESTARTS.value), lambda: codes.append(server.restart()))
            )
        outcome = load.run(
            [server.grpc_address, server.rest_address],
            _MODEL.value,
            examples,
            answers,
            requests=_REQUESTS.value,
            clients=_CLIENTS.value,
            seed=_SEED.value,
            events=events,
            until_version=_SWAPS.value + 1,
        )
    finally:
        code = server.stop()
        if sys.exc_info()[0]:
            sys.stderr.write((folder / "server.log").read_text()[-4000:])
    _show(outcome)
    flat = _show_memory(server, outcome.last_event)
    ended_well = not any([code, *codes])
    print(f"{'server':<24}restarted {len(codes)} times, exit codes {[*codes, code]}")
    return 0 if flat and ended_well and _is_right(outcome, set(range(1, _SWAPS.value + 2))) else 1


def _load_running(versions: list[pathlib.Path]) -> int:
    examples = models.pool(versions[-1], _POOL)
    outcome = load.run(
        str(_ADDRESS.value).split(","),
        _MODEL.value,
        examples,
        models.answers(versions[-1:], examples),
        requests=_REQUESTS.value,
        clients=_CLIENTS.value,
        seed=_SEED.value,
    )
    _show(outcome)
    return 0 if _is_right(outcome, {int(versions[-1].name)}) else 1


def _is_right(outcome: load.Outcome, versions: set[int]) -> bool:
    return not outcome.errors and not outcome.wrong and set(outcome.versions) == versions


def _publish(version: pathlib.Path, base_dir: pathlib.Path) -> None:
    """Adds a version as an export does: it appears at once."""
    base_dir.mkdir(exist_ok=True)
    number = len(list(base_dir.iterdir())) + 1
    staging = base_dir.parent / f"staging-{number}"
    shutil.copytree(version, staging)
    staging.rename(base_dir / str(number))


def _show(outcome: load.Outcome) -> None:
    answered = sum(outcome.versions.values())
    print(f"{'requests':<24}{answered:,} right, {len(outcome.wrong)} wrong, {len(outcome.errors)} errors")
    print(f"{'answered by version':<24}{dict(sorted(outcome.versions.items()))}")
    print(f"{'throughput':<24}{answered / outcome.elapsed:.0f} requests/s by {_CLIENTS.value} clients")
    latencies.show(outcome.seconds)
    print()
    for text in (*outcome.wrong[:5], *outcome.errors[:5]):
        print(f"  {text}")


def _show_memory(server: ServerProcess, since: float) -> bool:
    """Prints the server's memory; returns whether it stayed the same since the last event, whose time is given."""
    for k, life in enumerate(server.memory, 1):
        values = [size for _, size in life]
        if values:
            largest, end = max(values) / 2**20, values[-1] / 2**20
            print(f"{f'memory, life {k}':<24}largest {largest:.0f} MiB, at the end {end:.0f} MiB")
    last = [size for when, size in server.memory[-1] if when > since]
    third = len(last) // 3  # the first third is for loading what the event brought
    if not third:
        return True
    middle, end = float(np.median(last[third : 2 * third])), float(np.median(last[2 * third :]))
    print(f"{'growth at the end':<24}{100 * (end / middle - 1):+.1f} %")
    return end <= (1 + _GROWTH.value) * middle


def _overhead(folder: pathlib.Path, version: pathlib.Path) -> int:
    _publish(version, folder / "served")
    server = ServerProcess(folder / "served", _MODEL.value, folder / "server.log")
    try:
        server.wait_until_ready()
        print(f"{'':<56}{'p50 ms':>10}{'p90 ms':>10}")
        for name, p50, p90 in overhead.small_requests(version, server, _MODEL.value, _REPETITIONS.value):
            print(f"{name:<56}{1e3 * p50:>10.2f}{1e3 * p90:>10.2f}")
        print(f"\n{'':<56}{'seconds':>10}{'ratio':>10}")
        rows = overhead.large_request(version, server, _MODEL.value)
        for name, seconds in rows:
            print(f"{name:<56}{seconds:>10.2f}{seconds / rows[0][1]:>10.2f}")
    finally:
        server.stop()
    return 0


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main)
