"""What the exporter uses of TensorFlow that is not its public API. Seen in TensorFlow 2.20 and 2.21."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

# Graphs as messages, and the numbers of types in them: the format is kept, the modules are not documented.
from tensorflow.core.framework import function_pb2, types_pb2

# The outputs of an operation, by its name.
from tensorflow.python.framework import op_def_registry

# The functions given to tf.custom_gradient, which a graph holds by name.
from tensorflow.python.framework.ops import gradient_registry

__all__ = [
    "AutoTrackable",
    "concrete_functions",
    "function_pb2",
    "gradient_registry",
    "op_def_registry",
    "set_attribute",
    "types_pb2",
]

# What tf.Module and the objects of tf.saved_model.load have in common.
AutoTrackable = tf.__internal__.tracking.AutoTrackable


def concrete_functions(function: Any) -> Iterable[Any]:
    """The concrete functions of a tf.function, or of one from tf.saved_model.load."""
    restored = getattr(function, "concrete_functions", None)
    return function._list_all_concrete_functions() if restored is None else restored


def set_attribute(operation: tf.Operation, name: str, value: Any) -> None:
    """Changes an attribute of an operation in a graph that is being built; `value` is a tf.compat.v1.AttrValue."""
    operation._set_attr(name, value)
