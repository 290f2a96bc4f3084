"""`ntk-dataset features`, and any other signature that has a row for each example: the rows that a store lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from serving.dataset import engine, jobs
from serving.dataset.export import Export, features_shape
from serving.dataset.prepared import Prepared, Say
from serving.dataset.store import check_store, layout_of, open_store
from serving.dataset.summary import Summary
from serving.dataset.tiles import itemsize, rows_at_once

ARRAY = "features"


def write_features(
    export: Export, rows: Prepared, output: Path, workers: engine.Workers, memory: int, say: Say
) -> Summary:
    """The rows of `ntk_features`: see `write_rows`."""
    shape, dtype = features_shape(export.manifest), export.manifest["kernel"]["dtype"]
    return write_rows(export, rows, output, workers, memory, say, "ntk_features", ARRAY, shape, dtype)


def write_outputs(
    export: Export, rows: Prepared, output: Path, workers: engine.Workers, memory: int, say: Say
) -> Summary:
    """The rows of `forward`: see `write_rows`."""
    of_model = export.manifest["output"]
    return write_rows(
        export, rows, output, workers, memory, say, "forward", "output", of_model["shape"][1:], of_model["dtype"]
    )


def write_rows(
    export: Export,
    rows: Prepared,
    output: Path,
    workers: engine.Workers,
    memory: int,
    say: Say,
    signature: str,
    name: str,
    row: Sequence[int],
    dtype: str,
) -> Summary:
    """Computes what the store lacks.

    Args:
      export: with the signature.
      rows: the data set.
      output: of the store.
      workers: that compute.
      memory: bytes of each.
      say: told what is done, in a word and in more.
      signature: that is asked.
      name: of its output, and so of the array.
      row: shape of an example's result.
      dtype: of it.

    Raises:
      DatasetError: it cannot be done.
    """
    identity = {"format": 1, "kind": name, "export": export.digest, "axes": export.axes, "data": rows.digest}
    check_store(output, name, identity)
    n = rows.data.rows
    with engine.connected(workers) as client:
        count = engine.worker_count(client)
        step = rows_at_once(export.manifest, n, itemsize(dtype) * math.prod(row), memory, count)
        if there := layout_of(output, name):
            (step, *_), _ = there
        tasks = [slice(start, min(n, start + step)) for start in range(0, n, step)]

        def add(summary: Summary, task: slice, done: jobs.Done) -> None:
            summary.add(done, examples=task.stop - task.start)

        with open_store(output, name, identity, (n, *row), dtype, (step, *row), (step,), rows.plain) as store:
            say("tiles", f"{len(tasks):,} of {step:,} rows of {' × '.join(f'{size:,}' for size in row)}")
            job = jobs.RowsJob(export, {"data": rows.source}, store.path, signature, name)
            title = f"{name} of {n:,} examples"
            return engine.complete(client, job, title, tasks, len(tasks), lambda task: store.has((task,)), add, say)
