"""Maxima over windows, with a derivative that XLA is fast at on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk import equations
from exporter.ntk.equations import aval
from exporter.ntk.layerwise.window import MOST_TAPS, Window, interleaved

Array = Any


def bind(eqn: JaxprEqn, values: Sequence[Array]) -> Sequence[Array]:
    """The outputs of a `reduce_window_max` equation.

    XLA:CPU scatters a derivative to where the maxima were, one number after the other. Here each position remembers
    which tap of its window the maximum was under, the first of equal ones as there, and the derivative is a sum over
    taps, which XLA fuses: 3 times faster for windows of 3×3, 9 times for 2×2.
    """
    p, data = eqn.params, aval(eqn.invars[0])
    taps = list(np.ndindex(*p["window_dimensions"]))
    stretched = any(size != 1 for size in p["base_dilation"])
    if len(taps) > MOST_TAPS or stretched or not jnp.issubdtype(data.dtype, jnp.floating):
        return equations.bind(eqn, values)
    window = Window(
        data.shape,
        tuple(p["window_dimensions"]),
        tuple(p["window_strides"]),
        tuple(p["window_dilation"]),
        (1,) * data.ndim,
        tuple(p["padding"]),
    )

    @jax.custom_vjp
    def maximum(a: Array) -> Array:
        return equations.bind(eqn, [a])[0]

    def forward(a: Array) -> tuple[Array, Array]:
        padded = window.pad(a, 0, -jnp.inf)
        largest, where = None, jnp.zeros(window.outputs, jnp.int8)
        for k, tap in enumerate(taps):
            under = padded
            for axis, index in enumerate(tap):
                under = window.under_tap(under, axis, 0, index)
            larger = True if largest is None else under > largest
            largest = under if largest is None else jnp.where(larger, under, largest)
            where = jnp.where(larger, jnp.int8(k), where)
        return maximum(a), where

    def backward(where: Array, d: Array) -> tuple[Array]:
        numbers = np.arange(len(taps), dtype=np.int8).reshape(window.kernel)
        return (_of_data(window.transposed, where, d, jnp.flip(numbers)),)

    maximum.defvjp(forward, backward)
    return [maximum(values[0])]


def _of_data(window: Window, where: Array, d: Array, taps: Array) -> Array:
    """The derivative of the data: under each of these `taps`, what d is where the maximum was under that tap.

    It is the convolution that a derivative of data is, by a kernel that is 1 for the one tap, else 0.
    """
    axis = next(filter(window.phased, range(len(window.inputs))), None)
    if axis is not None:
        return interleaved(window, axis, lambda phase, taps: _of_data(phase, where, d, taps), taps, 0)
    where, d = window.pad(where, 0, -1), window.pad(d, 0)
    zero, total = jnp.zeros((), d.dtype), jnp.zeros(window.outputs, d.dtype)
    for tap in np.ndindex(*window.kernel):
        under = [where, d]
        for axis, index in enumerate(tap):
            under = [window.under_tap(a, axis, 0, index) for a in under]
        total = total + jnp.where(under[0] == taps[tap], under[1], zero)
    return total
