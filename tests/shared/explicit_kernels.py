"""One kernel of all pairs of outputs is compiled, and compared with over any axes."""

from collections.abc import Sequence

import numpy as np

from exporter.ntk.reference import contract_axes


def contracted(
    kernel: np.ndarray, shape: Sequence[int] = (), *, trace_axes: Sequence[int], diagonal_axes: Sequence[int]
) -> np.ndarray:
    """The kernel over these axes of outputs, from `reference_ntk` without any: (n1, n2, a, a, b, b, ...).

    The outputs may be reshaped to (n, *shape) before.
    """
    n1, n2, *outputs = *kernel.shape[:2], *(shape or kernel.shape[2::2])
    kernel = kernel.transpose(*range(0, kernel.ndim, 2), *range(1, kernel.ndim, 2))
    return contract_axes(kernel.reshape(n1, *outputs, n2, *outputs), trace_axes=trace_axes, diagonal_axes=diagonal_axes)
