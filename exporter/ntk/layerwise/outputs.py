"""The axes of a model's output in a kernel: traced (averaged), diagonal, or kept on both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

Array = Any
Range = tuple[Any, int]  # the first and how many


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

    def basis(self, dtype: Any, *, diagonal: Range | None = None, traced: Range | None = None) -> Array:
        """One cotangent for each output: (D, C, K, *shape).

        Of the diagonal and of the traced ones those of a range (first, count), which may be traced by JAX in its first;
        beyond the last output cotangents are zero, which add nothing.
        """

        def rows(range_: Range | None, size: int) -> Array:
            first, count = range_ or (0, size)
            return (first + jnp.arange(count)[:, None] == jnp.arange(size)).astype(dtype)

        sizes = [self.diagonal, self.traced, self.kept]
        parts = [rows(diagonal, sizes[0]), rows(traced, sizes[1]), rows(None, sizes[2])]
        basis = jnp.einsum("da,cb,ke->dckabe", *parts)
        basis = basis.reshape(*basis.shape[:3], *(self._shape[axis] for axis in self._order))
        return jnp.transpose(basis, [0, 1, 2, *(3 + self._order.index(axis) for axis in range(len(self._shape)))])

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
