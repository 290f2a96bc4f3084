"""Convolutions as patches times matrices, and the patches themselves."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from exporter.ntk.layerwise import rules

Array = Any


def patches(eqn: JaxprEqn, a: Array) -> Array:
    """The data (batch, *spatial, channels by `lhs_spec`) under every output position: (batch, *positions, taps, channels).

    `taps` are the kernel's positions in row-major order.
    """
    p, dn = eqn.params, eqn.params["dimension_numbers"]
    kernel = [eqn.invars[1].aval.shape[axis] for axis in dn.rhs_spec[2:]]
    a = jnp.transpose(a, (dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1]))
    padding = [(lo, hi, stretch - 1) for (lo, hi), stretch in zip(p["padding"], p["lhs_dilation"], strict=True)]
    a = lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), *padding, (0, 0, 0)])[..., None, :]
    for axis, (size, stride, dilation) in enumerate(zip(kernel, p["window_strides"], p["rhs_dilation"], strict=True), 1):
        count = (a.shape[axis] - (size - 1) * dilation - 1) // stride + 1
        slices = [
            lax.slice_in_dim(a, k * dilation, k * dilation + (count - 1) * stride + 1, stride, axis) for k in range(size)
        ]
        # One axis after the other: the sum of the kernel's sizes in slices and not their product. Taps of later axes
        # vary fastest, as in row-major order.
        a = jnp.stack(slices, -2).reshape(*slices[0].shape[:-2], -1, a.shape[-1])
    return a


def convolve(eqn: JaxprEqn, a: Array, w: Array) -> Array:
    """The output of a convolution equation."""
    return rules.bind(eqn, (a, w))[0]

