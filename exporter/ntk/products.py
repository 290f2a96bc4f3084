"""Convolutions as matrix products, for float64.

XLA:CPU computes float64 convolutions, and derivatives of all grouped ones, in scalar loops: a MobileNet's Jacobian
takes 30 times as long as by matrix products. The engine's own (`layerwise/convolution.py`) are not used here: the
oracle's must not be wrong in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk.equations import aval, bind, evaluate

Array = Any


def with_convolutions_as_products(fn: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `fn` with its convolutions, but for those within loops and branches, as sums of matrix products.

    Args:
      fn: a traceable function of pytrees of arrays to one array.
    """

    def evaluated(*args: Any) -> Array:
        closed = jax.make_jaxpr(fn)(*args)
        (output,) = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), _bind)
        return output

    return evaluated


def _bind(eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    return [_convolution(eqn, *values)] if _is_convolution(eqn) else bind(eqn, values)


def _is_convolution(eqn: JaxprEqn) -> bool:
    """One that has spatial axes and outputs, and of examples that do not mix."""
    if eqn.primitive is not lax.conv_general_dilated_p:
        return False
    output = aval(eqn.outvars[0])
    return eqn.params["batch_group_count"] == 1 and output.size > 0 and output.ndim > 2


def _convolution(eqn: JaxprEqn, a: Array, w: Array) -> Array:
    """The sum over the kernel's taps, one at a time, of the data under it times its matrices, one for each group."""
    p, dn = eqn.params, eqn.params["dimension_numbers"]
    groups = p["feature_group_count"]
    a = jnp.transpose(a, (dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1]))
    w = jnp.transpose(w, (*dn.rhs_spec[2:], dn.rhs_spec[1], dn.rhs_spec[0]))
    padding = [(*edges, stretch - 1) for edges, stretch in zip(p["padding"], p["lhs_dilation"], strict=True)]
    a = lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    axes = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])
    sizes = [aval(eqn.outvars[0]).shape[axis] for axis in axes]
    reach = [(size - 1) * stride + 1 for size, stride in zip(sizes[1:-1], p["window_strides"], strict=True)]
    taps = np.stack(np.unravel_index(np.arange(math.prod(w.shape[:-2])), w.shape[:-2]), -1)
    starts = np.c_[np.zeros(len(taps), int), taps * p["rhs_dilation"], np.zeros(len(taps), int)]

    @jax.checkpoint  # or derivatives of the loop would keep the data under each tap
    def add(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        start, matrices = tap
        x = lax.dynamic_slice(a, start, (a.shape[0], *reach, a.shape[-1]))
        x = lax.slice(x, [0] * a.ndim, x.shape, (1, *p["window_strides"], 1))
        return total + _product(x, matrices, groups), None

    total, _ = lax.scan(add, jnp.zeros(sizes, a.dtype), (starts, w.reshape(-1, *w.shape[-2:])))
    return jnp.transpose(total, [axes.index(axis) for axis in range(a.ndim)])


def _product(x: Array, w: Array, groups: int) -> Array:
    """(..., channels) and (channels of a group, features) to (..., features)."""
    channels, features = w.shape[0], w.shape[1] // groups
    x, w = x.reshape(*x.shape[:-1], groups, channels), w.reshape(channels, groups, features)
    if groups == 1:
        y = jnp.einsum("...i,ij->...j", x[..., 0, :], w[:, 0])[..., None, :]
    elif channels == 1:  # depthwise: no matrices to speak of
        y = x * w[0]
    else:
        y = jnp.einsum("...gi,igj->...gj", x, w)
    return y.reshape(*y.shape[:-2], -1)
