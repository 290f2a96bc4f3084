"""Element-wise ops, with TensorFlow's gradients where JAX's differ (ties and kinks, which zero inputs hit exactly)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special
import tensorflow as tf

from exporter.compat.tf2jax_names import numpy_compat
from exporter.functionalize.tf_ops.graph import Library
from exporter.functionalize.tf_ops.registry import OpFunction, converts, simple


def _maximum(x: Any, y: Any) -> Any:
    """At a tie TensorFlow gives x the whole gradient, jnp.maximum half of it. NaN in either gives NaN."""
    if not (isinstance(x, jax.Array) or isinstance(y, jax.Array)):
        return numpy_compat.maximum(x, y)  # sizes, perhaps symbolic
    return jnp.where((x >= y) | (x != x), x, y)


def _minimum(x: Any, y: Any) -> Any:
    """At a tie TensorFlow gives x the whole gradient, jnp.minimum half of it. NaN in either gives NaN."""
    if not (isinstance(x, jax.Array) or isinstance(y, jax.Array)):
        return numpy_compat.minimum(x, y)
    return jnp.where((x <= y) | (x != x), x, y)


def _relu6(x: jax.Array) -> jax.Array:
    """Its gradient is 0 at 0 and at 6; jax.nn.relu6's is one half."""
    return jnp.where((x > 0) & (x < 6), x, jax.lax.stop_gradient(jnp.clip(x, 0, 6)))


def _selu(x: jax.Array) -> jax.Array:
    """Its gradient at 0 is the scale; jax.nn.selu's is alpha * scale."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * jnp.where(x >= 0, x, alpha * jnp.expm1(jnp.where(x >= 0, 0, x)))


@converts("LeakyRelu")
def _leaky_relu(node: Any, library: Library) -> OpFunction:
    """Its gradient at 0 is alpha; jax.nn.leaky_relu's is 1."""
    alpha = node.attr["alpha"].f
    return lambda x: jnp.where(x > 0, x, alpha * x)


def _div_no_nan(x: Any, y: Any) -> Any:
    """x / y, and 0 where y is 0; with derivatives of every order and mode, unlike jax.custom_gradient."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))


def _x_no_nan(function: OpFunction) -> OpFunction:
    """x * function(y), and 0 where x is 0, whatever function(y) is there."""

    def evaluate(x: Any, y: Any) -> Any:
        zero = x == 0
        return jnp.where(zero, 0, x * function(jnp.where(zero, 1, y)))

    return evaluate


def _mul_no_nan(x: Any, y: Any) -> Any:
    """x * y, and 0 where y is 0, whatever x is there."""
    zero = y == 0
    return jnp.where(zero, 0, jnp.where(zero, 1, x) * y)


@converts("Cast")
def _cast(node: Any, library: Library) -> OpFunction:
    """Truncates as TensorFlow does; a float that is wider than the graph's own type stays wide."""
    source, target = (tf.as_dtype(node.attr[key].type) for key in ("SrcT", "DstT"))

    def cast(x: Any) -> Any:
        if source.is_floating and target.is_floating and jnp.finfo(x.dtype).bits > source.size * 8:
            return x
        if isinstance(x, jax.Array):
            return x.astype(jax.dtypes.canonicalize_dtype(target.as_numpy_dtype))
        return numpy_compat.asarray(x, target)

    return cast


@converts("Select")
def _select(node: Any, library: Library) -> OpFunction:
    """Like where, but a vector condition chooses whole rows."""

    def select(condition: Any, x: Any, y: Any) -> Any:
        return numpy_compat.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)

    return select


_OPS: dict[str, OpFunction] = {
    "Maximum": _maximum,
    "Minimum": _minimum,
    "Relu6": _relu6,
    "Selu": _selu,
    "Softsign": jax.nn.soft_sign,
    "DivNoNan": _div_no_nan,
    "MulNoNan": _mul_no_nan,
    "Xdivy": _x_no_nan(lambda y: 1 / y),
    "Xlogy": _x_no_nan(jnp.log),
    "Xlog1py": _x_no_nan(jnp.log1p),
    "SelectV2": numpy_compat.where,
    "IdentityN": lambda *values: values,
    "ClipByValue": lambda x, low, high: _minimum(_maximum(x, low), high),
    "Acos": jnp.arccos,
    "Asin": jnp.arcsin,
    "Atan": jnp.arctan,
    "Inv": lambda x: 1 / x,
    "Rint": jnp.round,
    "IsNan": jnp.isnan,
    "IsInf": jnp.isinf,
    "Mod": jnp.fmod,
    "TruncateMod": jnp.fmod,
    "TruncateDiv": jax.lax.div,
    "Ndtri": jax.scipy.special.ndtri,
    "Betainc": jax.scipy.special.betainc,
    "Zeta": jax.scipy.special.zeta,
    "Polygamma": jax.scipy.special.polygamma,
    "Expint": jax.scipy.special.expi,
    "BesselI0": jax.scipy.special.i0,
    "BesselI1": jax.scipy.special.i1,
}
for _name, _function in _OPS.items():
    converts(_name)(simple(_function))
