"""What each signature computes: a few XLA programs, and the graph that serves them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental
import numpy as np
import tensorflow as tf

from exporter import serve_graph
from exporter.functionalize import FunctionalModel
from exporter.lower import lower
from exporter.ntk.kernel import KernelFn, diagonal_fn
from exporter.ntk.precision import in_float64
from exporter.signatures import Compute


def build_functions(
    model: FunctionalModel,
    kernel: KernelFn,
    names: Sequence[str],
    *,
    swap: Sequence[int],
    platforms: Sequence[str],
    precision: str,
    block: int | None,
) -> dict[str, tuple[Compute, tf.TensorSpec]]:
    """How each signature is computed, and the shape (None for numbers of examples) and dtype of its result.

    Args:
      model: the model.
      kernel: its kernel.
      names: of the signatures to build.
      swap: the permutation of the kernel's axes that exchanges x1 and x2.
      platforms: the platforms to lower for.
      precision: of matrix products, or float64 for everything.
      block: examples of a side of a program; None if examples influence each other, so that a side is always a whole.
    """
    program = functools.partial(_program, model, platforms=platforms, precision=precision, block=block)
    kernel_program, kernel_spec = program(kernel, sides=2)
    diagonal_program, diagonal_spec = program(diagonal_fn(kernel, coupled=block is None), sides=1)
    forward_program, forward_spec = program(model.apply_fn, sides=1)

    def pair(params: Any, frozen: Any, x1: Any, x2: Any) -> tf.Tensor:
        run = functools.partial(kernel_program, params, frozen)
        if block is None:
            return serve_graph.whole(run, kernel_spec, x1, x2)
        return serve_graph.pairwise(serve_graph.Program(run, block, kernel_spec), x1, x2)

    def symmetric(params: Any, frozen: Any, x: Any) -> tf.Tensor:
        if block is None:
            return pair(params, frozen, x, x)
        run = functools.partial(kernel_program, params, frozen)
        return serve_graph.symmetric(serve_graph.Program(run, block, kernel_spec), x, swap)

    def rowwise(program: Callable[..., Any], spec: tf.TensorSpec, params: Any, frozen: Any, x: Any) -> tf.Tensor:
        run = functools.partial(program, params, frozen)
        if block is None:
            return serve_graph.whole(run, spec, x)
        return serve_graph.rowwise(serve_graph.Program(run, block, spec), x)

    functions: dict[str, tuple[Compute, tf.TensorSpec]] = {
        "ntk": (pair, kernel_spec),
        "ntk_with_params": (pair, kernel_spec),
        "ntk_symmetric": (symmetric, kernel_spec),
        "ntk_diagonal": (functools.partial(rowwise, diagonal_program, diagonal_spec), diagonal_spec),
        "forward": (functools.partial(rowwise, forward_program, forward_spec), forward_spec),
    }
    return {name: functions[name] for name in names}


def _program(
    model: FunctionalModel,
    fn: Callable[..., Any],
    *,
    sides: int,
    platforms: Sequence[str],
    precision: str,
    block: int | None,
) -> tuple[Callable[..., tf.Tensor], tf.TensorSpec]:
    """`fn(trainable, frozen, *sides)` lowered for TF, and the shape and dtype of its result with None for examples."""
    variables = (model.trainable, model.frozen)
    x = tuple(jax.ShapeDtypeStruct((block or 2, *spec.shape[1:]), spec.dtype) for spec in model.inputs)
    if precision == "float64":
        fn = in_float64(fn, *variables, *[x] * sides)
    with jax.experimental.enable_x64(precision == "float64"):
        shape = jax.eval_shape(fn, *variables, *[x] * sides)
    polymorphic = None
    if block is None:
        counts = ("n1", "n2") if sides == 2 else ("n",)
        polymorphic = [None, None, *(tuple(f"({n}, ...)" for _ in x) for n in counts)]
    lowered = lower(fn, platforms=platforms, precision=precision, polymorphic_shapes=polymorphic)
    result = tf.TensorSpec([*[None] * sides, *shape.shape[sides:]], np.dtype(shape.dtype))
    return lambda p, s, *xs: lowered(p, s, *map(tuple, xs)), result
