"""What cannot fit the memory budget, told by shapes alone, before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from exporter.errors import ExportError
from exporter.functionalize import TensorSpec
from exporter.ntk.layerwise.engine import LayerwiseParts


def check_pair(
    output: TensorSpec,
    kernel_shape: Sequence[int | None],
    kernel_dtype: str,
    kept_axes: Sequence[int],
    parts: LayerwiseParts | None,
    budget: int,
) -> None:
    """Raises ExportError if not even the kernel of one pair of examples fits.

    Args:
      output: of the model.
      kernel_shape: with None for numbers of examples.
      kernel_dtype: of the kernel.
      kept_axes: axes of the output of which the kernel has pairs.
      parts: the kernel in the layerwise form; None if it is not computed in that.
      budget: bytes.
    """
    kernel = math.prod(size or 1 for size in kernel_shape) * np.dtype(kernel_dtype).itemsize
    of_pair = _shape([1 if size is None else size for size in kernel_shape])
    needs = {f"the kernel {of_pair} {size_text(kernel)}": kernel}
    if parts is not None:
        work = parts.fewest_bytes_at_work
        needs[f"derivatives and features of the outputs that need each other {size_text(work)} for each example"] = work
    if max(needs.values()) <= budget:
        return
    axes = list(kept_axes)
    cure = (
        f"Average over axes of the output {_shape(output.shape)} that the kernel has pairs of, for all of them "
        f"ntk.trace_axes: {list(range(1, len(output.shape)))}, or keep only their diagonal, "
        f"ntk.diagonal_axes: {axes}, or raise the budget."
        if axes
        else "Average over more axes of the output (ntk.trace_axes), or raise the budget."
    )
    raise ExportError(
        f"The kernel of one pair of examples does not fit the memory budget: expected at most {size_text(budget)} "
        f"(export.memory_budget), received {', '.join(needs)}. {cure}"
    )


def size_text(count: float) -> str:
    """Bytes for people: 512 B, 64 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.4g} {unit}"


def _shape(shape: Sequence[int | None]) -> str:
    return f"({', '.join('n' if size is None else str(size) for size in shape)})"
