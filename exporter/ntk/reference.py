"""The oracle: the kernel from explicit Jacobians in float64, in memory that does not grow with the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from exporter.ntk.precision import in_float64

ApplyFn = Callable[[Mapping[str, Any], Mapping[str, Any], tuple[Any, ...]], Any]


def reference_ntk(
    apply_fn: ApplyFn,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    x1: tuple[Any, ...],
    x2: tuple[Any, ...] | None = None,
    *,
    trace_axes: Sequence[int] = (-1,),
    diagonal_axes: Sequence[int] = (),
    coupled: bool = False,
    memory: int = 1 << 30,
) -> np.ndarray:
    """J(x1) J(x2)ᵀ with J = ∂f/∂trainable written out row by row in float64 (Jacot et al. 2018, eq. 4).

    Args:
      apply_fn: `apply_fn(trainable, frozen, inputs)` of shape (n, *S) for inputs batched on axis 0.
      trainable: the variables of the Jacobian, by path.
      frozen: the other variables, by path.
      x1: the model's inputs, each (n1, ...).
      x2: the model's inputs, each (n2, ...); None for x1.
      trace_axes: axes of the output, counted with the batch axis, over which to average the kernel.
      diagonal_axes: axes of the output of which only equal positions are kept.
      coupled: whether examples of a batch influence each other's outputs: one Jacobian of the whole batch.
      memory: bytes that the Jacobian rows held at one time may take; more time is taken instead.

    Returns:
      float64 (n1, n2, ...) with the kept output axes in the order of `contract_axes`.
    """
    rows1 = _JacobianRows(apply_fn, trainable, frozen, x1, coupled)
    rows2 = rows1 if x2 is None else _JacobianRows(apply_fn, trainable, frozen, x2, coupled)
    chunk = max(1, memory // 2 // (8 * max(1, rows1.parameters)))
    kernel = np.zeros((rows1.count, rows2.count))
    for j in range(0, rows2.count, chunk):
        block2 = rows2[j : j + chunk]
        for i in range(0, rows1.count, chunk):
            block1 = block2 if rows1 is rows2 and i == j else rows1[i : i + chunk]
            kernel[i : i + chunk, j : j + chunk] = sum(a @ b.T for a, b in zip(block1, block2, strict=True))
    shape = rows1.output_shape
    kernel = kernel.reshape(rows1.examples, *shape, rows2.examples, *shape)
    return contract_axes(kernel, trace_axes=trace_axes, diagonal_axes=diagonal_axes)


def contract_axes(kernel: np.ndarray, *, trace_axes: Sequence[int], diagonal_axes: Sequence[int]) -> np.ndarray:
    """(n1, *S, n2, *S) to the kept axes: n1, n2, then per kept axis of S its pair, or once if it is diagonal.

    This is neural_tangents' order. `trace_axes` are averaged; axes count from the batch axis, negative from the last.
    """
    rank = kernel.ndim // 2
    trace, diagonal = ({a % rank for a in axes} for axes in (trace_axes, diagonal_axes))
    left, right = list(range(rank)), list(range(rank, 2 * rank))
    out = []
    for axis in range(rank):
        if axis in trace | diagonal:
            right[axis] = left[axis]
        if axis not in trace:
            out += [left[axis]] if axis in diagonal else [left[axis], right[axis]]
    size = math.prod(kernel.shape[a] for a in trace)
    return np.einsum(kernel, left + right, out) / size


class _JacobianRows:
    """The rows of ∂f/∂trainable, one for each example and output, computed when they are asked for."""

    def __init__(self, apply_fn: ApplyFn, trainable: Any, frozen: Any, x: tuple[Any, ...], coupled: bool) -> None:
        self._x, self.examples, self._coupled = x, len(x[0]), coupled
        self._variables = (trainable, frozen)
        batch = tuple(np.asarray(a) if coupled else np.asarray(a)[:1] for a in x)
        fn = in_float64(apply_fn, trainable, frozen, batch)
        with jax.experimental.enable_x64():
            shape = jax.eval_shape(fn, trainable, frozen, batch).shape
            self._vjps = jax.jit(lambda p, s, x, cotangents: _vjps(lambda q: fn(q, s, x), p, cotangents))
        self.output_shape: tuple[int, ...] = shape[1:]
        self._outputs = math.prod(self.output_shape)
        self.count = self.examples * self._outputs
        self.parameters = sum(np.size(v) for v in trainable.values())

    def __getitem__(self, rows: slice) -> list[np.ndarray]:
        """Those rows for each variable: (rows, size of the variable)."""
        start, stop, _ = rows.indices(self.count)
        with jax.experimental.enable_x64():
            if self._coupled:
                parts = [self._rows(self._x, self.examples, start, stop)]
            else:
                first, last = start // self._outputs, -(-stop // self._outputs)
                parts = [
                    self._rows(
                        tuple(np.asarray(a)[n : n + 1] for a in self._x),
                        1,
                        max(start - n * self._outputs, 0),
                        min(stop - n * self._outputs, self._outputs),
                    )
                    for n in range(first, last)
                ]
        return [np.concatenate(leaf) for leaf in zip(*parts, strict=True)]

    def _rows(self, x: tuple[Any, ...], n: int, start: int, stop: int) -> list[np.ndarray]:
        cotangents = np.zeros((stop - start, n * self._outputs))
        cotangents[np.arange(stop - start), np.arange(start, stop)] = 1
        shaped = cotangents.reshape(-1, n, *self.output_shape)
        return [np.asarray(leaf) for leaf in self._vjps(*self._variables, x, shaped)]


def _vjps(fn: Callable[[Any], Any], params: Mapping[str, Any], cotangents: Any) -> list[Any]:
    params = {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}
    _, vjp = jax.vjp(fn, params)
    (grads,) = jax.vmap(vjp)(cotangents)
    return [g.reshape(len(cotangents), -1) for g in grads.values()]
