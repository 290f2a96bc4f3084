"""Graphs of half precision: the same in float32, and values on their way into such a graph and out of it.

TensorFlow says at each node of which type its values are, and a policy of mixed precision shows in nothing else: casts
of float32 variables, nodes and constants of float16 or bfloat16. So a graph in which every such type reads float32 is
the same model without its rounding, and no converter of an op has to know of it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from exporter.compat.tensorflow_names import types_pb2

_HALF_TYPES = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)


def is_half(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16."""
    return np.dtype(dtype) in (np.float16, jnp.bfloat16)


def at_least_float32(dtype: Any) -> np.dtype:
    """float32 for a half type; another dtype as it is."""
    return np.dtype(np.float32) if is_half(dtype) else np.dtype(dtype)


def widened(value: Any) -> Any:
    """An array of half precision as float32; another as it is."""
    return value.astype(np.float32) if is_half(value.dtype) else value


def in_float32(proto: Any) -> Any:
    """A FunctionDef with each float16 and bfloat16 as float32: casts to them no longer round.

    Constants keep the value that they have in half precision.
    """
    wide = type(proto)()
    wide.CopyFrom(proto)
    for attr in (attr for node in wide.node_def for attr in node.attr.values()):
        kind = attr.WhichOneof("value")
        if kind == "type":
            attr.type = _wide_type(attr.type)
        elif kind == "list":
            attr.list.type[:] = map(_wide_type, attr.list.type)
        elif kind == "tensor" and attr.tensor.dtype in _HALF_TYPES:
            attr.tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(attr.tensor).astype(np.float32)))
    return wide


def half_types(node: Any) -> list[np.dtype]:
    """The half types that a NodeDef names."""
    types = (kind for attr in node.attr.values() for kind in (attr.type, *attr.list.type))
    return [np.dtype(tf.as_dtype(kind).as_numpy_dtype) for kind in types if kind in _HALF_TYPES]


def _wide_type(kind: int) -> int:
    return types_pb2.DT_FLOAT if kind in _HALF_TYPES else kind
