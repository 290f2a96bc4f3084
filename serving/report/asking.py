"""What an export computes of examples, as arrays."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.dataset.data import Rows
from serving.dataset.errors import DatasetError
from serving.dataset.export import Export, find_export
from serving.dataset.model import Model
from serving.report.errors import ReportError
from serving.report.sample import take
from serving.shared.progress import Progress, waiting

_REQUEST = 1 << 29  # bytes of one request's result
_ROWS = 512  # of a request of independent rows


def find_kernel(path: str) -> Export:
    """The version that has a kernel of examples with themselves, or of pairs.

    Raises:
      DatasetError: there is none.
    """
    try:
        export = find_export(path, "ntk_symmetric")
    except DatasetError:
        export = find_export(path, "ntk")  # which says what else is wrong
    shape = export.manifest["output"]["shape"]
    if None in shape[1:]:
        raise ReportError(
            f"{export.path}: expected an output of known shape, found {shape}. Export with export.input_shapes."
        )
    return export


class Asked:
    """A loaded export.

    Attributes:
      export: which it is.
      load_seconds: that loading took.
    """

    def __init__(self, export: Export) -> None:
        """Loads it."""
        start = time.monotonic()
        self.export = export
        self._model = Model(export.path, export.digest, os.cpu_count() or 1)
        self.load_seconds = time.monotonic() - start

    def kernel(self, examples: Rows) -> np.ndarray:
        """float32 or wider (n, n): of the examples with themselves, mean over all output axes.

        Raises:
          ReportError: it has entries that are not finite.
        """
        n = _count(examples)
        pair = 8 * int(np.prod(self.export.manifest["kernel"]["shape"][2:], dtype=np.int64))
        if "ntk_symmetric" in self.export.signatures and n * n * pair <= _REQUEST:
            with waiting(f"kernel of {n:,}"):
                kernel = self._reduced(self._model.call("ntk_symmetric", _side("x", examples))["ntk"])
        else:
            kernel = self._by_rows(examples, max(1, _REQUEST // (n * pair)))
        if not np.all(np.isfinite(kernel)):
            i, j = np.argwhere(~np.isfinite(kernel))[0]
            raise ReportError(
                f"{self.export.path}: expected a kernel of finite numbers, received {kernel[i, j]} between examples "
                f"{i:,} and {j:,} of the sample. Export with ntk.precision: float32 or float64, or remove them."
            )
        return kernel

    def forward(self, examples: Rows) -> np.ndarray | None:
        """(n, …) the network's own outputs; None without the signature."""
        if "forward" not in self.export.signatures:
            return None
        return by_rows(self._model.call, "forward", examples)["output"]

    def _by_rows(self, examples: Rows, step: int) -> np.ndarray:
        n = _count(examples)
        if "ntk" not in self.export.signatures:
            raise ReportError(
                f"{self.export.path}: expected the signature 'ntk', which a kernel of {n:,} examples takes in parts, "
                f"found {', '.join(self.export.signatures)}. Give --examples less, or export with it."
            )
        progress, parts = Progress(f"kernel of {n:,}", n, None, unit="examples"), []
        try:
            for start in range(0, n, step):
                some = take(examples, slice(start, start + step))
                parts.append(self._reduced(self._model.call("ntk", _side("x1", some) | _side("x2", examples))["ntk"]))
                progress.advance(_count(some))
        finally:
            progress.close()
        return np.concatenate(parts)

    def _reduced(self, kernel: np.ndarray) -> np.ndarray:
        return mean_over_kept(kernel, self.export.manifest)


def mean_over_kept(kernel: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """(n1, n2): of the axes that are kept in pairs the mean of equal positions, of those kept once the mean."""
    kernel = kernel if kernel.dtype in (np.float32, np.float64) else kernel.astype(np.float32)
    if kernel.ndim == 2:
        return kernel
    ntk, rank = manifest["configuration"]["ntk"], len(manifest["output"]["shape"])
    trace, diagonal = ({axis % rank for axis in ntk[f"{name}_axes"]} for name in ("trace", "diagonal"))
    subscripts, size, place = [0, 1], 1, 2
    for axis in range(1, rank):
        if axis in trace:
            continue
        subscripts += [axis + 1] * (1 if axis in diagonal else 2)
        size *= kernel.shape[place]
        place = len(subscripts)
    return np.einsum(kernel, subscripts, [0, 1]) / np.asarray(size, kernel.dtype)


def by_rows(call: Any, signature: str, examples: Rows) -> dict[str, np.ndarray]:
    """All outputs of a signature of independent rows, some rows at a time."""
    starts = range(0, _count(examples), _ROWS)
    parts = [call(signature, _side("x", take(examples, slice(k, k + _ROWS)))) for k in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def size_of(path: Path) -> int:
    """Bytes of all files of a SavedModel."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _count(examples: Rows) -> int:
    return len(next(iter(examples.inputs.values())))


def _side(side: str, examples: Rows) -> dict[str, np.ndarray]:
    return {f"{side}{suffix}": array for suffix, array in examples.inputs.items()}
