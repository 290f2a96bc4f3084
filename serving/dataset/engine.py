"""Jobs on Dask: this machine's cores or any cluster, tasks a few at a time, each tried three times."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dask
import distributed
import numpy as np
from dask.system import CPU_COUNT
from distributed.scheduler import KilledWorker

from serving.dataset import jobs
from serving.dataset.errors import DatasetError
from serving.dataset.summary import Summary
from serving.shared.progress import Progress, waiting

TRIES = 3
# Dask would have workers give memory back to the system at once and get it again: tiles took 1.27 times as long.
_LOCAL = {
    "distributed.scheduler.allowed-failures": TRIES - 1,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}
_AHEAD = 2  # tasks for each worker: one that it works at, one that waits for it


@dataclasses.dataclass(frozen=True)
class Workers:
    """Where a job runs.

    Attributes:
      scheduler: address of a running one; None for workers of our own, here.
      count: of our own; None for one for each core.
      wait: seconds until there must be a worker.
    """

    scheduler: str | None = None
    count: int | None = None
    wait: float = 300.0


@contextlib.contextmanager
def connected(workers: Workers) -> Iterator[distributed.Client]:
    """A client of a cluster that has workers.

    Raises:
      DatasetError: there is no such scheduler, or none of its workers came.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said by what is raised here
    with contextlib.ExitStack() as stack:
        if workers.scheduler is None:
            stack.enter_context(dask.config.set(_LOCAL))
            address = stack.enter_context(_local(workers.count or CPU_COUNT))
        else:
            address = workers.scheduler
        try:
            client = stack.enter_context(distributed.Client(address, timeout=min(30.0, workers.wait)))
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"Expected a Dask scheduler at {address}, received none: {error}. Start one, or correct --scheduler."
            ) from error
        try:
            client.wait_for_workers(1, timeout=workers.wait)
        except TimeoutError as error:
            raise DatasetError(
                f"The scheduler {address} has no workers after {workers.wait:g} s. Start some, or raise --wait."
            ) from error
        yield client


def worker_count(client: distributed.Client) -> int:
    """Workers that there are now; others may come and go."""
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


@contextlib.contextmanager
def registered(client: distributed.Client, job: jobs.Job) -> Iterator[None]:
    """A job as a plugin of all workers, also of those that come later.

    Raises:
      DatasetError: a worker cannot do it.
    """
    try:
        client.register_plugin(job)
    except DatasetError:
        raise
    except Exception as error:  # of unpickling it on a worker, most likely
        raise DatasetError(
            f"A worker cannot run the job: {type(error).__name__}: {error}. Install ntk-exporter[dataset], of the same "
            "version, on every worker."
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the workers are gone
            client.unregister_worker_plugin(job.name)


def _loaded(client: distributed.Client, job: jobs.Job) -> str:
    """Has every worker open what the job needs; which and how long it took, in words."""
    start = time.monotonic()
    addresses = client.scheduler_info(n_workers=-1)["workers"]
    opened = {a: client.submit(jobs.open_job, job.name, workers=[a], key=f"{job.name}-{a}") for a in addresses}
    distributed.wait(list(opened.values()))
    for address, future in opened.items():
        _result(future, f"Loading the export on {address}")
    return f"{len(opened)}, which loaded the export and opened the data in {time.monotonic() - start:.1f} s"


def run(client: distributed.Client, job: jobs.Job, tasks: Iterable[Any], received: Callable[[Any, Any], None]) -> None:
    """Runs a job's tasks; at most a few for each worker are known to the scheduler at a time.

    Args:
      client: of the cluster.
      job: registered; called with each task on a worker.
      tasks: made when they are needed.
      received: told each task and its result, in any order.

    Raises:
      DatasetError: a task failed, for the third time.
    """
    waiting = iter(tasks)
    pending: dict[distributed.Future, Any] = {}
    completed = distributed.as_completed()
    numbers = itertools.count()

    def submit() -> None:
        room = max(0, _AHEAD * worker_count(client) - len(pending))
        for task in itertools.islice(waiting, room):
            key = f"{job.name}-{next(numbers)}"
            future = client.submit(jobs.run, job.name, task, key=key, retries=TRIES - 1, pure=False)
            pending[future] = task
            completed.add(future)

    submit()
    for future in completed:
        task = pending.pop(future)
        received(task, _result(future, task))
        future.release()
        submit()


def complete(
    client: distributed.Client,
    job: jobs.Job,
    title: str,
    tasks: Iterable[Any],
    count: int,
    is_there: Callable[[Any], bool],
    add: Callable[[Summary, Any, Any], None],
    say: Callable[[str, str], None],
) -> Summary:
    """Runs those of a job's tasks whose results are not there, and shows how far it is.

    Args:
      client: of the cluster.
      job: called with each task on a worker.
      title: of the progress.
      tasks: all of them; gone through twice.
      count: their number.
      is_there: whether a task's result is.
      add: adds a task and its result to the summary.
      say: told of the workers.

    Raises:
      DatasetError: see `run`.
    """
    missing = np.fromiter((not is_there(task) for task in tasks), bool, count)
    total, summary = int(missing.sum()), Summary()
    if not total:
        return summary
    with registered(client, job):
        with waiting("load the export on the workers"):
            loaded = _loaded(client, job)
        say("workers", loaded)
        progress = Progress(title, total, True, unit="tiles")
        start = time.monotonic()

        def received(task: Any, result: Any) -> None:
            add(summary, task, result)
            progress.advance()

        try:
            run(client, job, itertools.compress(tasks, missing), received)
        finally:
            progress.close()
            summary.seconds = time.monotonic() - start
    return summary


@contextlib.contextmanager
def _local(count: int) -> Iterator[str]:
    """The address of a scheduler of our own, in this process, with workers in processes of their own."""
    with distributed.LocalCluster(
        n_workers=count,
        threads_per_worker=max(1, CPU_COUNT // count),
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=None,  # tiles are chosen for it; Dask would end workers by what the machine has
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster.scheduler_address


def _result(future: distributed.Future, task: Any) -> Any:
    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise DatasetError(
            f"{task} was {future.status}: the scheduler is gone, or somebody took it back. What is written stays; give "
            "the same command again."
        )
    error = future.exception()
    if isinstance(error, DatasetError):
        raise error
    if isinstance(error, KilledWorker):
        raise DatasetError(
            f"Several workers died at the same task, {task}; most likely their memory ran out. What is written stays: "
            "give the same command with a smaller --memory (and another --output, if tiles become smaller)."
        ) from error
    if isinstance(error, OSError):
        raise error
    lines = str(error).splitlines() or [""]
    raise DatasetError(
        f"{task} failed {TRIES} times: {type(error).__name__}: {lines[0]}. What is written stays."
    ) from (error)
