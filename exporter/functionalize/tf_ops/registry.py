"""The table of op converters: this project's own first, then tf2jax's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from exporter.compat import tf2jax_names

# A converter reads a NodeDef once and returns the op as a function: input values -> output value, or a tuple of them.
# Beside the node it gets the functions that the graph calls, by name, a `graph.Library`.
OpFunction = Callable[..., Any]
Converter = Callable[[Any, Any], OpFunction]

_RANDOM_PREFIXES = (
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "Random",
    "RngReadAndSkip",
    "StatefulRandom",
    "StatefulStandardNormal",
    "StatefulTruncatedNormal",
    "StatefulUniform",
    "StatelessMultinomial",
    "StatelessParameterized",
    "StatelessRandom",
    "StatelessTruncatedNormal",
    "TruncatedNormal",
)

_CONVERTERS: dict[str, Converter] = {}


def converts(*op_names: str) -> Callable[[Converter], Converter]:
    """Decorator: the converter of the named TensorFlow ops, in place of tf2jax's (whose table stays as it is)."""

    def register(converter: Converter) -> Converter:
        for op_name in op_names:
            assert op_name not in _CONVERTERS, op_name
            _CONVERTERS[op_name] = converter
        return converter

    return register


def simple(function: OpFunction) -> Converter:
    """The converter of an op that needs none of its node's attributes."""
    return lambda node, library: function


def is_random(op_name: str) -> bool:
    """Whether the TensorFlow op draws random numbers."""
    return op_name.startswith(_RANDOM_PREFIXES)


def is_supported(op_name: str) -> bool:
    """Whether there is a converter for the TensorFlow op."""
    return op_name in _CONVERTERS or tf2jax_names.is_supported(op_name)


def convert_node(node: Any, library: Mapping[str, OpFunction]) -> OpFunction:
    """The op of a NodeDef as a function; KeyError if there is no converter (see `is_supported`)."""
    if node.op in _CONVERTERS:
        return _CONVERTERS[node.op](node, library)
    return tf2jax_names.convert(node, library)
