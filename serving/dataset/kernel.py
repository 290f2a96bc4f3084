"""`ntk-dataset kernel`: the tiles that a store lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.dataset import engine, jobs
from serving.dataset.export import Export
from serving.dataset.prepared import Prepared, Say
from serving.dataset.store import check_store, layout_of, open_store
from serving.dataset.summary import Summary
from serving.dataset.tiles import Grid, Tile, choose_grid

ARRAY = "kernel"


def write_kernel(
    export: Export,
    rows: Prepared,
    columns: Prepared | None,
    output: Path,
    workers: engine.Workers,
    memory: int,
    say: Say,
) -> Summary:
    """Computes what the store lacks.

    Args:
      export: with the signature `ntk`.
      rows, columns: data sets; without `columns` the kernel is symmetric.
      output: of the store.
      workers: that compute.
      memory: bytes of each.
      say: told what is done, in a word and in more.

    Raises:
      DatasetError: it cannot be done.
    """
    symmetric, other = columns is None, columns or rows
    identity: dict[str, Any] = {"format": 1, "kind": ARRAY, "export": export.digest, "axes": export.axes}
    identity["data"] = rows.digest
    plain, sources = dict(rows.plain), {"data": rows.source}
    if columns is not None:
        identity["data2"], sources["data2"] = columns.digest, columns.source
        plain |= {f"{name}2": array for name, array in columns.plain.items()}
    check_store(output, ARRAY, identity)
    kernel = export.manifest["kernel"]
    shape = rows.data.rows, other.data.rows, *kernel["shape"][2:]
    with engine.connected(workers) as client:
        count = engine.worker_count(client)
        grid = choose_grid(export.manifest, *shape[:2], symmetric=symmetric, memory=memory, workers=count)
        if there := layout_of(output, ARRAY):
            (chunk1, chunk2), (side1, side2) = (examples[:2] for examples in there)
            grid = Grid(grid.examples, (chunk1, chunk2), symmetric, (side1 // chunk1, side2 // chunk2))
        chunk = *grid.chunk, *shape[2:]

        def add(summary: Summary, tile: Tile, done: jobs.Done) -> None:
            on_diagonal = symmetric and tile.row == tile.column
            n = tile.rows.stop - tile.rows.start
            pairs = n * (n + 1) // 2 if on_diagonal else tile.pairs
            summary.add(done, examples=pairs / shape[1] * (2 if symmetric else 1), pairs=pairs)

        with open_store(output, ARRAY, identity, shape, kernel["dtype"], chunk, grid.sides, plain) as store:

            def is_there(tile: Tile) -> bool:
                mirrored = not symmetric or store.has((tile.columns, tile.rows))
                return mirrored and store.has((tile.rows, tile.columns))

            sides = " × ".join(f"{side:,}" for side in grid.sides)
            title = f"kernel {shape[0]:,} × {shape[1]:,}"
            say("tiles", f"{grid.tiles:,} of {sides}")
            job = jobs.KernelJob(export, sources, store.path)
            return engine.complete(client, job, title, grid, grid.tiles, is_there, add, say)
