"""`ntk-dataset features`: the rows that a store lacks."""

from __future__ import annotations

import math
from pathlib import Path

from serving.dataset import engine, jobs
from serving.dataset.export import Export, features_shape
from serving.dataset.prepared import Prepared, Say
from serving.dataset.store import check_store, chunk_of, open_store
from serving.dataset.summary import Summary
from serving.dataset.tiles import itemsize, rows_at_once

ARRAY = "features"


def write_features(
    export: Export, rows: Prepared, output: Path, workers: engine.Workers, memory: int, say: Say
) -> Summary:
    """Computes what the store lacks.

    Args:
      export: with the signature `ntk_features`.
      rows: the data set.
      output: of the store.
      workers: that compute.
      memory: bytes of each.
      say: told what is done, in a word and in more.

    Raises:
      DatasetError: it cannot be done.
    """
    identity = {"format": 1, "kind": ARRAY, "export": export.digest, "axes": export.axes, "data": rows.digest}
    check_store(output, ARRAY, identity)
    n, row, dtype = rows.data.rows, features_shape(export.manifest), export.manifest["kernel"]["dtype"]
    with engine.connected(workers) as client:
        count = engine.worker_count(client)
        step = rows_at_once(export.manifest, n, itemsize(dtype) * math.prod(row), memory, count)
        if there := chunk_of(output, ARRAY):
            step = there[0]
        tasks = [slice(start, min(n, start + step)) for start in range(0, n, step)]

        def add(summary: Summary, task: slice, done: jobs.Done) -> None:
            summary.add(done, examples=task.stop - task.start)

        with open_store(output, ARRAY, identity, (n, *row), dtype, (step, *row), rows.plain) as store:
            say("tiles", f"{len(tasks):,} of {step:,} rows of {' × '.join(f'{size:,}' for size in row)}")
            job = jobs.FeaturesJob(export, {"data": rows.source}, store.path)
            title = f"features of {n:,} examples"
            return engine.complete(
                client, job, title, tasks, len(tasks), lambda task: store.has(task.start // step), add, say
            )
