"""The derivative of quantized layers, which is the one that TensorFlow is given for them.

A layer that is quantized to integers, activations included (Keras' `layer.quantize("int8")`), has no derivative with
respect to its input: its values pass through a cast to integers. It brings a gradient instead (`tf.custom_gradient`),
that of the layer with the same weights and activations that are not rounded. With that TensorFlow trains what lies
before the layer, so of that is the kernel. Where a layer's values do have a derivative, it is taken from them, and a
gradient that differs is refused (`custom_gradients`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from exporter.compat.tensorflow_names import gradient_registry
from exporter.functionalize.tf_ops import Edge, GraphFunction, Library, Replacement


def given_gradients(traced: Any, function: GraphFunction, *, keep_half: bool) -> dict[str, Replacement]:
    """The nodes of tf.custom_gradient whose values pass through integers, evaluated such that JAX takes that gradient.

    Args:
      traced: the tf.ConcreteFunction of a model.
      function: the same, as it is evaluated.
      keep_half: as of `Library`.
    """
    if not any(map(_is_cast_to_integers, function.nodes)):
        return {}
    arguments = {id(tensor): name for tensor, name in zip(traced.inputs, function.argument_names, strict=True)}
    replacements = {}
    for node in function.nodes:
        if node.op != "IdentityN" or not node.attr["_gradient_op_type"].s:
            continue
        operation = traced.graph.get_operation_by_name(node.name)
        try:
            gradient, differentiated = _gradient(operation)
        except LookupError:  # of a loaded SavedModel, which does not hold it
            continue
        if _passes_integers(function, node, differentiated):
            captured = [
                Edge(arguments[id(t)], 0) if id(t) in arguments else Edge(t.op.name, t.value_index)
                for t in gradient.captured_inputs
            ]
            library = Library(gradient.graph.as_graph_def().library.function, keep_half=keep_half)
            pull_back = GraphFunction(gradient.function_def, library)
            replacements[node.name] = Replacement(
                tuple(captured), _Given(pull_back, differentiated, len(operation.inputs))
            )
    return replacements


def _gradient(operation: tf.Operation) -> tuple[Any, list[int]]:
    """The custom gradient of an operation as a tf.ConcreteFunction of cotangents, and the inputs that it is of."""
    registered = gradient_registry.lookup(operation.get_attr("_gradient_op_type").decode())
    differentiated: list[int] = []

    def gradient(*cotangents: tf.Tensor) -> list[tf.Tensor]:
        gradients = registered(operation, *cotangents)
        differentiated[:] = [i for i, g in enumerate(gradients) if g is not None]
        return [gradients[i] for i in differentiated]

    specs = [tf.TensorSpec(t.shape, t.dtype) for t in operation.outputs]
    with operation.graph.as_default():
        return tf.function(gradient, autograph=False).get_concrete_function(*specs), differentiated


def _passes_integers(function: GraphFunction, node: Any, differentiated: Sequence[int]) -> bool:
    """Whether there is a cast to integers between what a custom gradient is with respect to, and what it is of."""
    edges = list(function.inputs(node))
    ends = {edges[i] for i in differentiated}
    stack, done = [edge for edge in edges if edge not in ends], set(ends)
    while stack:
        edge = stack.pop()
        before = function.named(edge.name)
        if edge in done or before is None:
            continue
        if _is_cast_to_integers(before):
            return True
        done.add(edge)
        stack += function.inputs(before)
    return False


def _is_cast_to_integers(node: Any) -> bool:
    if node.op != "Cast":
        return False
    source, target = (tf.as_dtype(node.attr[key].type) for key in ("SrcT", "DstT"))
    return source.is_floating and target.is_integer


class _Given:
    """The values of a custom gradient's node, with that derivative.

    A value y with the gradient g(dy) with respect to x is y + gᵀ(x - x), of which x in the second term alone is
    differentiated: an expression without custom derivatives, so with derivatives in every mode.
    """

    def __init__(self, pull_back: GraphFunction, differentiated: Sequence[int], count: int) -> None:
        self._pull_back, self._differentiated, self._count = pull_back, tuple(differentiated), count

    def __call__(self, *operands: Any) -> list[Any]:
        """Of the node's inputs, and what the gradient captures."""
        fixed = [jax.lax.stop_gradient(jnp.asarray(value)) for value in operands]
        values, captured = fixed[: self._count], fixed[self._count :]
        floating = {i: v for i, v in enumerate(values) if jnp.issubdtype(v.dtype, jnp.floating)}

        def pull_back(cotangents: Mapping[int, Any]) -> list[Any]:
            every = [cotangents[i] if i in cotangents else np.zeros(v.shape, v.dtype) for i, v in enumerate(values)]
            gradients = self._pull_back(*every, *captured)
            return [g.astype(values[i].dtype) for i, g in zip(self._differentiated, gradients, strict=True)]

        zeros = [operands[i] - values[i] for i in self._differentiated]
        (tangents,) = jax.linear_transpose(pull_back, floating)(zeros)
        return [value + tangents[i] if i in tangents else value for i, value in enumerate(values)]
