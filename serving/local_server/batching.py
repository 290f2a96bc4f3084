"""Joins requests of several clients into one computation, as TF Serving's --enable_batching does.

Only requests to versions with BatchingParameters of their own are joined, as with
--enable_per_model_batching_parameters. Two things are kinder than in TF Serving: a request is joined with those of its
own dtypes and shapes only, so that a wrong one fails alone, and as many wait as the server's queue allows.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures

import grpc
import numpy as np

from serving.local_server.admission import Admission
from serving.local_server.errors import ServingError, deadline_exceeded, invalid_argument
from serving.local_server.servable import Servable
from serving.shared.batching_parameters import BatchingParameters

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What requests have in common that may be joined."""

    servable: Servable
    parameters: BatchingParameters
    signature: str
    outputs: tuple[str, ...]
    inputs: tuple[tuple[str, np.dtype, tuple[int, ...]], ...]  # with the shape of a row


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """A request that waits."""

    inputs: Arrays
    rows: int
    answer: futures.Future[dict[str, np.ndarray]] = dataclasses.field(default_factory=futures.Future)


class _Batch:
    """Requests that are computed together; guarded by the lock of `Batching` until it is closed."""

    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.full = threading.Event()

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


class Batching:
    """Collects requests in batches, which threads of its own compute."""

    def __init__(self, admission: Admission, threads: int) -> None:
        """A batch takes one place of `admission`, and its requests none."""
        self._admission = admission
        self._threads = futures.ThreadPoolExecutor(threads, thread_name_prefix="batching")
        self._lock = threading.Lock()
        self._open: dict[_Kind, _Batch] = {}

    def run(
        self,
        servable: Servable,
        parameters: BatchingParameters,
        deadline: float,
        signature: str,
        inputs: Arrays,
        outputs: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """As `Servable.run`, together with what others ask for.

        Args:
          servable: what is asked; its caller keeps it loaded.
          parameters: how its requests are joined.
          deadline: until when the client waits, on the clock of `time.monotonic`.
          signature: its name.
          inputs: an array for each of the signature's inputs, with an axis 0 of equal size.
          outputs: the wanted ones; all if empty.

        Raises:
          ServingError: the request cannot be joined, was not computed in time, or what TensorFlow says to the batch.
        """
        task = _Task(inputs, _rows(inputs))
        if task.rows == 0:  # nothing that a batch could be filled up with
            return servable.run(signature, inputs, outputs)
        if task.rows > parameters.max_batch_size:
            raise invalid_argument(
                f"Task size {task.rows} is larger than maximum input batch size {parameters.max_batch_size}"
            )
        rows = tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))
        self._add(task, _Kind(servable, parameters, signature, tuple(outputs), rows))
        try:
            return task.answer.result(min(deadline - time.monotonic(), threading.TIMEOUT_MAX))
        except TimeoutError:
            if task.answer.cancel():
                raise deadline_exceeded("Run() timeout exceeded while waiting in batching queue") from None
            return task.answer.result()  # it is being computed, which nothing can interrupt

    def stop(self) -> None:
        """Takes no further requests."""
        self._threads.shutdown(wait=False)

    def _add(self, task: _Task, kind: _Kind) -> None:
        limit = kind.parameters.max_batch_size
        with self._lock:
            batch = self._open.get(kind)
            if batch and batch.rows + task.rows > limit:
                batch.full.set()
                batch = None
            if batch is None:
                batch = self._open[kind] = _Batch()
                self._threads.submit(self._compute, kind, batch)
            batch.tasks.append(task)
            if batch.rows == limit:
                batch.full.set()

    def _compute(self, kind: _Kind, batch: _Batch) -> None:
        """Waits for further requests, closes the batch and answers those that still wait."""
        batch.full.wait(kind.parameters.batch_timeout_micros / 1e6)
        with self._admission.place():
            with self._lock:
                if self._open.get(kind) is batch:
                    del self._open[kind]
            tasks = [task for task in batch.tasks if task.answer.set_running_or_notify_cancel()]
            try:
                answers = _answers(kind, tasks) if tasks else []
            except Exception as error:
                for task in tasks:
                    task.answer.set_exception(error)
            else:
                for task, answer in zip(tasks, answers, strict=True):
                    task.answer.set_result(answer)


def _rows(inputs: Arrays) -> int:
    """How many there are in each of the inputs; raises ServingError, in TF Serving's words, if that is no number."""
    if not inputs:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    if any(array.ndim == 0 for array in inputs.values()):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) > 1:
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _answers(kind: _Kind, tasks: Sequence[_Task]) -> list[dict[str, np.ndarray]]:
    """Computes the requests by one call: joined, filled up with the last one's first row, and split again."""
    ends = list(itertools.accumulate(task.rows for task in tasks))
    rows, sizes = ends[-1], kind.parameters.allowed_batch_sizes
    padded = sizes[bisect.bisect_left(sizes, rows)] if sizes else rows
    merged = {
        name: np.concatenate([*(task.inputs[name] for task in tasks), *[tasks[-1].inputs[name][:1]] * (padded - rows)])
        for name, _, _ in kind.inputs
    }
    results = kind.servable.run(kind.signature, merged, kind.outputs)
    for array in results.values():
        if array.ndim == 0:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(array) != padded:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
    return [
        {name: array[end - task.rows : end] for name, array in results.items()}
        for task, end in zip(tasks, ends, strict=True)
    ]
