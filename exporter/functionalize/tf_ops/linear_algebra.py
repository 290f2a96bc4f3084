"""Matrix ops that tf2jax lacks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import tensorflow as tf

from exporter.functionalize.tf_ops.graph import Library
from exporter.functionalize.tf_ops.registry import OpFunction, converts, simple


@converts("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _batch_matmul(node: Any, library: Library) -> OpFunction:
    """The product may be of another type than the factors: of 8-bit integers it has 32."""
    adjoint_x, adjoint_y = node.attr["adj_x"].b, node.attr["adj_y"].b
    result = tf.as_dtype(node.attr["Tout"].type) if "Tout" in node.attr else None
    integers = result.as_numpy_dtype if result is not None and result.is_integer else None

    def multiply(x: Any, y: Any) -> jax.Array:
        x, y = _adjoint(x) if adjoint_x else x, _adjoint(y) if adjoint_y else y
        return jnp.matmul(x, y, preferred_element_type=integers)

    return multiply


def _adjoint(x: Any) -> jax.Array:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


@converts("SparseMatMul")
def _sparse_matmul(node: Any, library: Library) -> OpFunction:
    """The product of dense matrices of which one is said to have many zeros."""
    transpose_a, transpose_b = node.attr["transpose_a"].b, node.attr["transpose_b"].b
    return lambda a, b: jnp.matmul(a.T if transpose_a else a, b.T if transpose_b else b)


@converts("SparseTensorDenseMatMul")
def _sparse_tensor_dense_matmul(node: Any, library: Library) -> OpFunction:
    adjoint_a, adjoint_b = node.attr["adjoint_a"].b, node.attr["adjoint_b"].b

    def multiply(indices: Any, values: Any, shape: Any, b: Any) -> jax.Array:
        a = jnp.zeros([int(size) for size in shape], values.dtype).at[indices[:, 0], indices[:, 1]].add(values)
        return jnp.matmul(_adjoint(a) if adjoint_a else a, _adjoint(b) if adjoint_b else b)

    return multiply


@converts("MatrixInverse")
def _inverse(node: Any, library: Library) -> OpFunction:
    adjoint = node.attr["adjoint"].b
    return lambda x: jnp.linalg.inv(_adjoint(x) if adjoint else x)


@converts("MatrixSolve")
def _solve(node: Any, library: Library) -> OpFunction:
    adjoint = node.attr["adjoint"].b
    return lambda a, b: jnp.linalg.solve(_adjoint(a) if adjoint else a, b)


def _diagonal_part(x: Any, k: Any, padding: Any) -> jax.Array:
    if jnp.ndim(k) and (len(k) > 1 and k[0] != k[-1]):
        raise NotImplementedError("it takes a band of diagonals; take one at a time")
    return jnp.diagonal(x, offset=int(jnp.ravel(k)[0]) if jnp.ndim(k) else int(k), axis1=-2, axis2=-1)


_OPS: dict[str, OpFunction] = {
    "MatrixDeterminant": jnp.linalg.det,
    "LogMatrixDeterminant": lambda x: tuple(jnp.linalg.slogdet(x)),
    "MatrixDiagPartV3": _diagonal_part,
    "Cross": jnp.cross,
}
for _name, _function in _OPS.items():
    converts(_name)(simple(_function))
