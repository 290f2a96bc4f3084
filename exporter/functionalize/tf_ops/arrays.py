"""Ops that rearrange, count or look up, and shapes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from exporter.functionalize.tf_ops.graph import Library, is_known
from exporter.functionalize.tf_ops.registry import OpFunction, converts, simple


@converts("MirrorPad")
def _mirror_pad(node: Any, library: Library) -> OpFunction:
    mode = node.attr["mode"].s.decode().lower()
    return lambda x, paddings: jnp.pad(x, paddings, mode=mode)


@converts("Bucketize")
def _bucketize(node: Any, library: Library) -> OpFunction:
    boundaries = np.asarray(node.attr["boundaries"].list.f, np.float32)
    return lambda x: jnp.searchsorted(jnp.asarray(boundaries), x, side="right").astype(jnp.int32)


@converts("DenseBincount")
def _dense_bincount(node: Any, library: Library) -> OpFunction:
    """How often each number below `size` occurs along the last axis, its weights' sum, or whether it occurs."""
    binary = node.attr["binary_output"].b
    dtype = jax.dtypes.canonicalize_dtype(tf.as_dtype(node.attr["T"].type).as_numpy_dtype)

    def count(numbers: Any, size: Any, weights: Any) -> jax.Array:
        hits = jnp.asarray(numbers)[..., None] == np.arange(int(size))
        if binary:
            return hits.any(axis=-2).astype(dtype)
        if weights.size:
            return jnp.where(hits, jnp.asarray(weights)[..., None], 0).sum(axis=-2)
        return hits.sum(axis=-2).astype(dtype)

    return count


@converts("Cumsum", "Cumprod", "CumulativeLogsumexp")
def _cumulative(node: Any, library: Library) -> OpFunction:
    function, neutral = {
        "Cumsum": (jax.lax.cumsum, 0),
        "Cumprod": (jax.lax.cumprod, 1),
        "CumulativeLogsumexp": (jax.lax.cumlogsumexp, -np.inf),
    }[node.op]
    exclusive, reverse = node.attr["exclusive"].b, node.attr["reverse"].b

    def accumulate(x: Any, axis: Any) -> jax.Array:
        axis = int(axis) % x.ndim
        result = function(jnp.asarray(x), axis=axis, reverse=reverse)
        if not exclusive:
            return result
        low, high = ((0, 1) if reverse else (1, 0)), ((1, 0) if reverse else (0, 1))
        kept = jax.lax.slice_in_dim(result, high[0], result.shape[axis] - high[1], axis=axis)
        pads = [(0, 0)] * x.ndim
        pads[axis] = low
        return jnp.pad(kept, pads, constant_values=neutral)

    return accumulate


@converts("OneHot")
def _one_hot(node: Any, library: Library) -> OpFunction:
    axis = node.attr["axis"].i

    def one_hot(indices: Any, depth: Any, on: Any, off: Any) -> jax.Array:
        place = indices.ndim if axis == -1 else axis
        classes = np.arange(int(depth)).reshape([-1 if i == place else 1 for i in range(indices.ndim + 1)])
        return jnp.where(jnp.expand_dims(indices, place) == classes, on, off)

    return one_hot


def _reverse_sequence_converter(node: Any, library: Library) -> OpFunction:
    """Reverses the first `length` entries of each example along seq_dim."""
    seq_axis, batch_axis = node.attr["seq_dim"].i, node.attr["batch_dim"].i

    def reverse(x: Any, lengths: Any) -> jax.Array:
        shape = [1] * x.ndim
        shape[seq_axis] = -1
        positions = np.arange(x.shape[seq_axis]).reshape(shape)
        shape = [1] * x.ndim
        shape[batch_axis] = -1
        lengths = jnp.asarray(lengths).reshape(shape)
        source = jnp.where(positions < lengths, lengths - 1 - positions, positions)
        return jnp.take_along_axis(x, jnp.broadcast_to(source, _broadcast(source.shape, x.ndim)), axis=seq_axis)

    return reverse


def _broadcast(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return shape + (1,) * (rank - len(shape))


converts("ReverseSequence")(_reverse_sequence_converter)


def _index(indices: Any) -> tuple[Any, ...]:
    return tuple(jnp.moveaxis(jnp.asarray(indices), -1, 0))


def _scatter_nd(indices: Any, updates: Any, shape: Any) -> jax.Array:
    """Repeated indices add up."""
    return jnp.zeros([int(size) for size in shape], updates.dtype).at[_index(indices)].add(updates)


def _dynamic_stitch(*operands: Any) -> jax.Array:
    """Rows by index, the later ones over the earlier ones."""
    half = len(operands) // 2
    indices, data = operands[:half], operands[half:]
    length = 1 + max(int(np.max(i, initial=-1)) for i in indices)
    result = jnp.zeros((length, *data[0].shape[indices[0].ndim :]), data[0].dtype)
    for i, rows in zip(indices, data, strict=True):
        result = result.at[i.reshape(-1)].set(rows.reshape(-1, *result.shape[1:]))
    return result


@converts("Shape", "ShapeN", "VariableShape", "Size")
def _shape(node: Any, library: Library) -> OpFunction:
    """Shapes are known when traced; a symbolic size stays what it is."""
    dtype = tf.as_dtype(node.attr["out_type"].type or tf.int32).as_numpy_dtype

    def shape(*arrays: Any) -> list[np.ndarray]:
        shapes = [np.asarray(array.shape) for array in arrays]
        values = [np.prod(s, dtype=s.dtype if s.size else dtype) for s in shapes] if node.op == "Size" else shapes
        return [np.asarray(v) if v.dtype == object else v.astype(dtype) for v in values]

    return shape


def _fill(shape: Any, value: Any) -> Any:
    """Of known sizes and value, a known array; sizes may be symbolic."""
    if is_known(shape) and is_known(value):
        return np.full(shape, value)
    return jnp.full(tuple(shape), value, value.dtype)


_OPS: dict[str, OpFunction] = {
    "Fill": _fill,
    "ScatterNd": _scatter_nd,
    "TensorScatterAdd": lambda x, indices, updates: jnp.asarray(x).at[_index(indices)].add(updates),
    "TensorScatterSub": lambda x, indices, updates: jnp.asarray(x).at[_index(indices)].add(-updates),
    "TensorScatterMax": lambda x, indices, updates: jnp.asarray(x).at[_index(indices)].max(updates),
    "TensorScatterMin": lambda x, indices, updates: jnp.asarray(x).at[_index(indices)].min(updates),
    "DynamicStitch": _dynamic_stitch,
    "ParallelDynamicStitch": _dynamic_stitch,
    "ResourceGatherNd": lambda x, indices: x[_index(indices)],
    "LinSpace": lambda start, stop, number: np.linspace(start, stop, int(number), dtype=start.dtype),
    "Snapshot": lambda x: x,
    "PlaceholderWithDefault": lambda x: x,
    "Print": lambda x, *data: x,
}
for _name, _function in _OPS.items():
    converts(_name)(simple(_function))


# By slices, as neural-tangents differentiates no primitive of several results, such as JAX's `split`.


@converts("Split")
def _split(node: Any, library: Library) -> OpFunction:
    count = node.attr["num_split"].i
    return lambda axis, x: _slices(x, [x.shape[int(axis)] // count] * count, axis)


@converts("SplitV")
def _split_v(node: Any, library: Library) -> OpFunction:
    return _slices


@converts("Unpack")
def _unpack(node: Any, library: Library) -> OpFunction:
    count, axis = node.attr["num"].i, node.attr["axis"].i
    return lambda x: tuple(part.squeeze(axis) for part in _slices(x, [1] * count, axis))


def _slices(x: Any, sizes: Any, axis: Any) -> tuple[Any, ...]:
    """`x` cut along an axis into parts of these sizes, of which one may be -1 for the rest."""
    axis, sizes = int(axis), [int(size) for size in sizes]
    rest = x.shape[axis] - sum(size for size in sizes if size >= 0)
    ends = np.cumsum([rest if size < 0 else size for size in sizes]).tolist()
    prefix = (slice(None),) * (axis % x.ndim)
    return tuple(x[(*prefix, slice(start, end))] for start, end in zip([0, *ends], ends, strict=False))
