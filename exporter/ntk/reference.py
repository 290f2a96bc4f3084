"""The oracle: the kernel from explicit Jacobians in float64, in bounded memory."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.compat.jax_names import enable_x64
from exporter.ntk.precision import in_float64
from exporter.ntk.products import with_convolutions_as_products

ApplyFn = Callable[[Mapping[str, Any], Mapping[str, Any], tuple[Any, ...]], Any]
# Compiled by XLA for few runs: in a third of the time, for programs that run about as fast.
FEW_RUNS: Mapping[str, Any] = types.MappingProxyType({"xla_backend_optimization_level": 1})

# Gradients of more numbers than this are computed one after the other: together, derivatives by convolutions' kernels
# are batched products, of operands that XLA copies first, which takes nearly as long as a ResNet-50's products.
ONE_BY_ONE = 100_000

Vjps = Callable[[Mapping[str, Any], Mapping[str, Any], tuple[Any, ...], Any], list[Any]]

# Told of a Jacobian: its examples, the number of its first part, and for each variable, in the order of their paths,
# (examples, parts, outputs of a part, size of the variable).
Told = Callable[[slice, int, Sequence[np.ndarray]], object]


def jitted_vjps(apply_fn: ApplyFn, trainable: Any, frozen: Any, x: tuple[Any, ...]) -> Vjps:
    """The function of variables, inputs and cotangents (R, n, *S) to float64 gradients (R, ...) of each parameter.

    Of the arguments here only the dtypes are used. It is to be called where float64 is enabled.
    """
    fn = with_convolutions_as_products(in_float64(apply_fn, trainable, frozen, x))

    @functools.partial(jax.jit, compiler_options=dict(FEW_RUNS))
    def vjps(trainable: Mapping[str, Any], frozen: Mapping[str, Any], x: tuple[Any, ...], cotangents: Any) -> list[Any]:
        params = {k: jnp.asarray(v, jnp.float64) for k, v in trainable.items()}
        _, vjp = jax.vjp(lambda params: fn(params, frozen, x), params)
        large = sum(np.size(v) for v in trainable.values()) > ONE_BY_ONE
        (grads,) = jax.lax.map(vjp, cotangents) if large else jax.vmap(vjp)(cotangents)
        return list(grads.values())

    return vjps


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
    vjps: Vjps | None = None,
    told: Sequence[Told] = (),
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
      memory: bytes that the Jacobians held at one time may take, if one example's kept outputs fit; else time is taken.
      vjps: `jitted_vjps` of these, if it is called for several values of the variables and should be compiled once.
      told: are told of all of J(x1), each part of it once; without x2. The parts are the positions of traced and
        diagonal axes, in C order.

    Returns:
      float64 (n1, n2, ...) with the kept output axes in the order of `contract_axes`.
    """
    vjps = vjps or jitted_vjps(apply_fn, trainable, frozen, x1)
    left = ExplicitJacobian(apply_fn, vjps, trainable, frozen, x1, coupled)
    right = left if x2 is None else ExplicitJacobian(apply_fn, vjps, trainable, frozen, x2, coupled)
    shape = left.output_shape
    reduced = [1 if a + 1 in {t % (len(shape) + 1) for t in trace_axes} else n for a, n in enumerate(shape)]
    kernel = np.zeros((left.count, math.prod(reduced), right.count, math.prod(reduced)))
    # Only outputs at one position of the traced and diagonal axes meet: the kept ones there are a part of the outputs.
    parts, places = _parts(shape, reduced, [*trace_axes, *diagonal_axes])
    row = 8 * max(1, sum(np.size(v) for v in trainable.values())) * len(parts[0])  # bytes of one example's Jacobian
    # Of one side that fits as a whole nothing is written twice; else a block of each side is held.
    memory = memory if left is right and row * left.count <= memory else memory // 2
    together = max(1, memory // (row * max(left.count, right.count)))  # parts
    together = -(-len(parts) // -(-len(parts) // together))  # the last ones are nearly as many
    examples = max(1, memory // row)
    for first in range(0, len(parts), together):
        some = parts[first : first + together]
        for j in range(0, right.count, examples):
            jacobian2 = right(some, slice(j, j + examples), together)
            for i in range(j if left is right else 0, left.count, examples):
                same = left is right and i == j
                jacobian1 = jacobian2 if same else left(some, slice(i, i + examples), together)
                if same:
                    for tell in told:
                        tell(slice(i, i + len(jacobian1[0])), first, jacobian1)
                for k, place in enumerate(places[first : first + together]):
                    product = sum(
                        np.einsum("nap,mbp->namb", a[:, k], b[:, k], optimize=True)
                        for a, b in zip(jacobian1, jacobian2, strict=True)
                    )
                    rows, columns = (range(at, min(at + examples, side.count)) for at, side in ((i, left), (j, right)))
                    kernel[np.ix_(rows, place, columns, place)] += product
                    if left is right and i > j:
                        kernel[np.ix_(columns, place, rows, place)] += product.transpose(2, 3, 0, 1)
    kernel = kernel.reshape(left.count, *reduced, right.count, *reduced)
    kernel = kernel / (math.prod(shape) // math.prod(reduced))
    return contract_axes(kernel, trace_axes=trace_axes, diagonal_axes=diagonal_axes)


def _parts(shape: Sequence[int], reduced: Sequence[int], axes: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """The outputs at each position of `axes`, as indices into outputs of `shape`, and into those of shape `reduced`."""
    fixed = {a % (len(shape) + 1) - 1 for a in axes}
    sizes = [n if a in fixed else 1 for a, n in enumerate(shape)]
    indices = np.arange(math.prod(shape)).reshape(shape)
    indices_reduced = np.broadcast_to(np.arange(math.prod(reduced)).reshape(reduced), shape)
    at = [tuple(p if a in fixed else slice(None) for a, p in enumerate(place)) for place in np.ndindex(*sizes)]
    return [indices[place].ravel() for place in at], [indices_reduced[place].ravel() for place in at]


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


class ExplicitJacobian:
    """∂f/∂trainable, of the examples and outputs that are asked for.

    Attributes:
      count: of examples.
      output_shape: of one example's output.
    """

    def __init__(
        self, apply_fn: ApplyFn, vjps: Vjps, trainable: Any, frozen: Any, x: tuple[Any, ...], coupled: bool
    ) -> None:
        """Takes what `reference_ntk` takes."""
        self._x, self.count, self._coupled = tuple(map(np.asarray, x)), len(x[0]), coupled
        self._variables, self._vjps = (trainable, frozen), vjps
        batch = (trainable, frozen, self._batch(0))
        fn = in_float64(apply_fn, *batch)
        with enable_x64():
            self._batch_shape = jax.eval_shape(fn, *batch).shape
        self.output_shape: tuple[int, ...] = self._batch_shape[1:]

    def __call__(self, parts: Sequence[np.ndarray], examples: slice, together: int) -> list[np.ndarray]:
        """For each variable (examples, parts, outputs of a part, size of the variable).

        It is compiled for `together` parts; where these are fewer, they are filled up with zeros.
        """
        outputs = np.concatenate(parts)
        size = len(parts[0])
        each = []
        with enable_x64():
            for n in range(*examples.indices(self.count)):
                cotangents = np.zeros((together * size, self._batch_shape[0], math.prod(self.output_shape)))
                cotangents[np.arange(len(outputs)), n if self._coupled else 0, outputs] = 1
                jacobian = self._vjps(*self._variables, self._batch(n), cotangents.reshape(-1, *self._batch_shape))
                each.append([np.asarray(leaf).reshape(together, size, -1)[: len(parts)] for leaf in jacobian])
        return [np.stack(leaf) for leaf in zip(*each, strict=True)]

    def _batch(self, n: int) -> tuple[np.ndarray, ...]:
        return self._x if self._coupled else tuple(a[n : n + 1] for a in self._x)
