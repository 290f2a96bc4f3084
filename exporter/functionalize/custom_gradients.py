"""Finds out whether tf.custom_gradient changes a model's derivative, which JAX takes from the forward pass alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from exporter.errors import ExportError
from exporter.functionalize.examples import Examples
from exporter.functionalize.front import Front
from exporter.functionalize.tracing import TracedModel

# Of the relative difference of gradients: far above rounding, far below a different derivative.
_TOLERANCE = 1e-2
_ROUNDINGS = 16  # or so many roundings of half precision, if TensorFlow computes in it


def check_gradients(
    traced: TracedModel,
    output: int,
    call: Callable[..., jax.Array],
    values: Mapping[str, np.ndarray],
    chosen: Set[str],
    layers: Set[str],
    half: np.dtype | None,
    front: tuple[Front, Examples] | None,
) -> None:
    """ExportError, naming the layers, if TensorFlow's gradient differs from JAX's at random inputs.

    Most custom gradients are the true derivative in a form that needs less memory or is more stable. Some are not: the
    straight-through estimators of quantised networks, say.

    Args:
      traced: the model.
      output: index of the output.
      call: the model's function of (variables by path, inputs) in JAX.
      values: the variables that the output depends upon.
      chosen: the paths to differentiate with respect to, those that are not in `values` aside.
      layers: those that have a custom gradient.
      half: the half precision that TensorFlow computes the model in, if any.
      front: what makes the function's inputs of the model's own, and examples of these; None if they are the same.
    """
    rng = np.random.default_rng(0)
    inputs = front[1](2) if front else _random_inputs(traced, rng)
    behind = front[0].run(inputs) if front else inputs
    trainable = {path: value for path, value in values.items() if path in chosen}
    frozen = {path: value for path, value in values.items() if path not in chosen}
    result, pullback = jax.vjp(jax.jit(lambda params: call({**frozen, **params}, behind)), trainable)
    cotangent = rng.normal(size=result.shape).astype(result.dtype)
    ours = pullback(cotangent)[0]

    variables = {v.path: v.variable for v in traced.variables if v.path in trainable}
    try:
        with tf.GradientTape() as tape:
            y = tf.cast(traced.call(inputs)[output], result.dtype)
        theirs = tape.gradient(y, variables, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    except LookupError as error:
        raise ExportError(
            f"{traced.name!r} overrides gradients (in {', '.join(sorted(layers))}), and whether they are those of its "
            f"forward pass cannot be told, since TensorFlow cannot differentiate it: {error}. Remove them."
        ) from error
    difference = sum(
        np.sum((tf.cast(tf.convert_to_tensor(theirs[path]), g.dtype) - g) ** 2) for path, g in ours.items()
    )
    size = sum(np.sum(np.square(gradient)) for gradient in ours.values())
    tolerance = _TOLERANCE if half is None else max(_TOLERANCE, _ROUNDINGS * float(jnp.finfo(half).eps))
    if not difference <= tolerance**2 * size:
        raise ExportError(
            f"Expected the gradients that {traced.name!r} overrides to be those of its forward pass, received "
            f"others (in {', '.join(sorted(layers))}). The kernel would be another; remove tf.custom_gradient."
        )


def _random_inputs(traced: TracedModel, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    shapes: list[Any] = [(2, *spec.shape[1:]) for spec in traced.inputs]
    return tuple(
        (rng.normal(size=shape) if np.issubdtype(np.dtype(spec.dtype), np.floating) else np.zeros(shape)).astype(
            spec.dtype
        )
        for spec, shape in zip(traced.inputs, shapes, strict=True)
    )
