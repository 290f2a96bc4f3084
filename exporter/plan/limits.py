"""What cannot fit the memory budget, told by shapes alone, before anything is compiled; and what XLA says of memory."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence

import jax
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


def out_of_memory(text: str) -> ExportError | None:
    """The error in place of XLA's text, if that says that memory ran out."""
    size = re.search(r"[Oo]ut of memory\D*?allocat\w+ (\d+) bytes", text)
    if size is None and "RESOURCE_EXHAUSTED" not in text:
        return None
    asked = f" of {size_text(int(size[1]))} at once" if size else ""
    return ExportError(
        f"Memory ran out: expected the kernel's intermediate values to fit this machine, received a request{asked}. "
        "Average over more axes of the output (ntk.trace_axes), keep only their diagonal (ntk.diagonal_axes), or lower "
        "export.memory_budget or export.verify.examples."
    )


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Errors of JAX that say that memory ran out, as ExportErrors."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        told = out_of_memory(str(error) if isinstance(error, jax.errors.JaxRuntimeError) else "RESOURCE_EXHAUSTED")
        if told is None:
            raise
        raise told from error


def size_text(count: float) -> str:
    """Bytes for people: 512 B, 64 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.4g} {unit}"


def _shape(shape: Sequence[int | None]) -> str:
    return f"({', '.join('n' if size is None else str(size) for size in shape)})"
