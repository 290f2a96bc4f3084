"""What in a graph stands in the way of its export, by layer."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import jax.numpy as jnp
import numpy as np

from exporter.functionalize.tf_ops.graph import GraphFunction, layer_scope
from exporter.functionalize.tf_ops.half_precision import half_types
from exporter.functionalize.tf_ops.registry import is_random, is_supported


def unsupported_operations(function: GraphFunction) -> dict[str, set[str]]:
    """The ops that have no converter -> the layers that they are in; random ones aside."""
    return _by_operation(function, _has_no_converter)


def operations_without_jax(function: GraphFunction, node: Any) -> dict[str, set[str]]:
    """The same of one node of the function, with those of the functions that it calls."""
    own = {node.op: {layer_scope(node.name)}} if _has_no_converter(node) else {}
    for callee in function.called_by(node):
        for op in unsupported_operations(callee):
            own.setdefault(op, set()).add(layer_scope(node.name))
    return own


def random_operations(function: GraphFunction) -> dict[str, set[str]]:
    """The ops that draw random numbers -> the layers that they are in."""
    return _by_operation(function, lambda node: is_random(node.op))


def half_precision(function: GraphFunction) -> np.dtype | None:
    """float16 or bfloat16, if any value is of that type; of both the one that rounds more."""
    found = {dtype for _, node, _ in _all_nodes(function) for dtype in half_types(node)}
    return max(found, key=lambda dtype: float(jnp.finfo(dtype).eps), default=None)


def layers_that_override_gradients(function: GraphFunction) -> Set[str]:
    """The layers with a tf.custom_gradient, other than TensorFlow's own of x * sigmoid(beta * x)."""
    return {
        layer
        for part, node, layer in _all_nodes(function)
        if node.op == "IdentityN" and node.attr["_gradient_op_type"].s and not _is_swish(part, node)
    }


def layers_that_read_what_they_wrote(function: GraphFunction) -> Set[str]:
    """The layers that read a variable after the call itself has assigned to it."""
    return {
        layer
        for part, node, layer in _all_nodes(function)
        if node.op == "ReadVariableOp" and any(write.input[0] == node.input[0] for write in _writes_before(part, node))
    }


def _has_no_converter(node: Any) -> bool:
    return not is_supported(node.op) and not is_random(node.op)


def _all_nodes(function: GraphFunction, caller: str = "") -> Iterator[tuple[GraphFunction, Any, str]]:
    """Every node that the results depend upon, with its function and layer; those of called functions included."""
    for node in function.nodes:
        yield function, node, _layer(node, caller)
    for node, callee in function.callees():
        yield from _all_nodes(callee, _layer(node, caller))


def _layer(node: Any, caller: str) -> str:
    """The layer of a node. Keras 3 names the nodes of functions in full, tf_keras from their caller's layer on."""
    layer = layer_scope(node.name)
    return layer if not caller or layer.split("/")[0] == caller.split("/")[0] else f"{caller}/{layer}"


def _by_operation(function: GraphFunction, condition: Any) -> dict[str, set[str]]:
    layers: dict[str, set[str]] = {}
    for _, node, layer in _all_nodes(function):
        if condition(node):
            layers.setdefault(node.op, set()).add(layer)
    return layers


def _is_swish(function: GraphFunction, node: Any) -> bool:
    product = function.producer(next(function.inputs(node)))
    if product is None or product.op != "Mul":
        return False
    factors = map(function.producer, function.inputs(product))
    return any(factor is not None and factor.op == "Sigmoid" for factor in factors)


def _writes_before(function: GraphFunction, node: Any) -> Iterator[Any]:
    for text in node.input:
        before = function.named(text.removeprefix("^")) if text.startswith("^") else None
        if before is not None and before.op.startswith("Assign"):
            yield before
