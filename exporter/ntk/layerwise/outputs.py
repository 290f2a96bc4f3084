"""The axes of a model's output in a kernel: traced (averaged), diagonal, or kept on both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

Array = Any


class OutputAxes:
    """Numbers the outputs of one example r = (d, c, k): d of the diagonal axes, c of the traced, k of the kept ones.

    Attributes:
      diagonal, traced, kept: the numbers D, C and K of these.
    """

    def __init__(self, shape: Sequence[int], *, trace_axes: Sequence[int], diagonal_axes: Sequence[int]) -> None:
        """Takes the shape of an output, and which of its axes (not negative) are traced and diagonal."""
        axes = range(len(shape))
        self._shape = tuple(shape)
        self._diagonal = [a for a in axes if a in diagonal_axes]
        self._kept = [a for a in axes if a not in diagonal_axes and a not in trace_axes]
        self._order = [*self._diagonal, *(a for a in axes if a in trace_axes), *self._kept]
        self.diagonal, self.kept = (math.prod(shape[a] for a in part) for part in (self._diagonal, self._kept))
        self.traced = math.prod(shape[a] for a in axes if a in trace_axes)

    @property
    def count(self) -> int:
        """The number of outputs R = D C K."""
        return self.diagonal * self.traced * self.kept

    @property
    def together(self) -> int:
        """How many outputs a kernel needs at a time at least: the kept ones, and beside diagonal ones the traced."""
        return self.kept * (self.traced if self.diagonal > 1 else 1)

    def basis(self, dtype: Any) -> Array:
        """One cotangent for each output: (D, C, K, *shape)."""
        rank = len(self._shape)
        basis = jnp.eye(self.count, dtype=dtype).reshape(*self._shape, *self._shape)
        basis = jnp.transpose(basis, [*self._order, *range(rank, 2 * rank)])
        return basis.reshape(self.diagonal, self.traced, self.kept, *self._shape)

    def arrange(self, kernel: Array, right: OutputAxes) -> Array:
        """The kernel (n1, n2, D, K1, K2) of this output with another in neural_tangents' order, its trace averaged.

        That is (n1, n2, ...) with, for each axis of the output in its order, two axes if kept and one if diagonal.
        """
        sizes = [self._shape[a] for a in [*self._diagonal, *self._kept]] + [right._shape[a] for a in right._kept]
        kernel = (kernel / self.traced).reshape(*kernel.shape[:2], *sizes)
        d, k = len(self._diagonal), len(self._kept)
        order = [0, 1]
        for axis in range(len(self._shape)):
            if axis in self._diagonal:
                order.append(2 + self._diagonal.index(axis))
            elif axis in self._kept:
                order += [2 + d + self._kept.index(axis), 2 + d + k + self._kept.index(axis)]
        return jnp.transpose(kernel, order)
