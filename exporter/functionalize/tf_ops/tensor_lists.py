"""TensorList ops (behind tf.TensorArray, so behind RNN layers, tf.map_fn and tf.scan): a list is an array, stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from exporter.functionalize.tf_ops.graph import Library
from exporter.functionalize.tf_ops.registry import OpFunction, converts, simple


@dataclasses.dataclass(frozen=True)
class UnwrittenList:
    """A list to which nothing has been written, so that the shape of its elements may be unknown."""

    length: int
    dtype: Any

    def zeros(self, element_shape: Sequence[Any], dtype: Any = None) -> jax.Array:
        """The list as an array of zeros, of another dtype than its own if given."""
        return jnp.zeros((self.length, *element_shape), dtype or self.dtype)


def _as_array(items: Any, element_shape: Any) -> Any:
    """A list that is read; of one that nothing was written to, `element_shape` must be known."""
    if not isinstance(items, UnwrittenList):
        return jnp.asarray(items)
    shape = np.atleast_1d(element_shape)
    if any(isinstance(size, np.integer) and size < 0 for size in shape):
        raise NotImplementedError("it reads a TensorArray that nothing was written to and whose shape is unknown")
    return items.zeros(tuple(shape))


@converts("TensorListReserve")
def _reserve(node: Any, library: Library) -> OpFunction:
    dtype = tf.as_dtype(node.attr["element_dtype"].type)
    return lambda element_shape, length: UnwrittenList(int(length), dtype.as_numpy_dtype)


@converts("TensorListSetItem")
def _set_item(node: Any, library: Library) -> OpFunction:
    if node.attr["resize_if_index_out_of_bounds"].b:
        raise NotImplementedError("its TensorArray has a dynamic size; give it a size and dynamic_size=False")

    def set_item(items: Any, index: Any, item: Any) -> Any:
        if isinstance(items, UnwrittenList):
            items = items.zeros(item.shape, jnp.promote_types(items.dtype, item.dtype))
        items = jnp.asarray(items, jnp.promote_types(items.dtype, item.dtype))
        return jax.lax.dynamic_update_index_in_dim(items, jnp.asarray(item, items.dtype), index, axis=0)

    return set_item


def _get_item(items: Any, index: Any, element_shape: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(_as_array(items, element_shape), index, axis=0, keepdims=False)


def _gather(items: Any, indices: Any, element_shape: Any) -> Any:
    return jnp.take(_as_array(items, element_shape), indices, axis=0)


def _scatter(tensor: Any, indices: Any, element_shape: Any, length: Any) -> Any:
    size = len(indices) if length < 0 else int(length)
    return jnp.zeros((size, *tensor.shape[1:]), tensor.dtype).at[indices].set(tensor)


def _length(items: Any) -> np.ndarray:
    return np.asarray(items.length if isinstance(items, UnwrittenList) else items.shape[0], np.int32)


_OPS: dict[str, OpFunction] = {
    "TensorListFromTensor": lambda tensor, element_shape: tensor,
    "TensorListStack": _as_array,
    "TensorListGetItem": _get_item,
    "TensorListGather": _gather,
    "TensorListScatterV2": _scatter,
    "TensorListLength": _length,
}
for _name, _function in _OPS.items():
    converts(_name)(simple(_function))
