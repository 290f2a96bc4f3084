"""Lookup tables that a graph captures, copied from their contents.

A copy is immutable and independent of what held the table: a Keras layer, a `tf.lookup` object that may be mutable, or
a SavedModel. It is saved with its keys and values, and filled whenever the SavedModel is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

from exporter.errors import ExportError
from exporter.functionalize.tf_ops import GraphFunction

_LOOKUP = "LookupTableFindV2"


def copied_table(handle: tf.Tensor, function: GraphFunction, model_name: str) -> tf.lookup.StaticHashTable:
    """A copy of the table with this handle, which `function` captures; ExportError if it is no table of scalars."""
    for key_dtype, value_dtype in sorted(set(_types(function)), key=str):
        try:
            keys, values = tf.raw_ops.LookupTableExportV2(table_handle=handle, Tkeys=key_dtype, Tvalues=value_dtype)
        except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError):
            continue  # a table of other types, or no table at all
        if keys.shape.rank == values.shape.rank == 1:
            initializer = tf.lookup.KeyValueTensorInitializer(keys, values)
            return tf.lookup.StaticHashTable(initializer, tf.zeros([], value_dtype))
    raise ExportError(
        f"Expected {model_name!r} to look up scalars in tables in front of its first variable, received another "
        "resource there; replace it by tf.lookup.StaticHashTable."
    )


def _types(function: GraphFunction) -> Iterable[tuple[tf.DType, tf.DType]]:
    """The types of keys and values that a graph looks up."""
    for node in function.all_nodes:
        if node.op == _LOOKUP:
            yield tf.as_dtype(node.attr["Tin"].type), tf.as_dtype(node.attr["Tout"].type)
        for callee in function.called_by(node):
            yield from _types(callee)
