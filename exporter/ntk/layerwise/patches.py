"""The data under each output position of a convolution: as a matrix, whose product with the kernel is the output."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk.layerwise.window import FEW_POSITIONS, MOST_TAPS, Window

Array = Any

Patches = Callable[[Window, int, Array], Array]  # make(window, groups, data): see `sliced`


def of_data(make: Patches, eqn: JaxprEqn, a: Array) -> Array:
    """The data under each output position: (groups, batch and positions, taps and channels of the group).

    Taps are in row-major order, and vary more slowly than channels.
    """
    dn, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    a = jnp.transpose(a, (dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1]))
    window = Window.of(eqn)
    return sliced(window, groups, a) if math.prod(window.kernel) == 1 else make(window, groups, a)


def sliced(window: Window, groups: int, a: Array) -> Array:
    """Those of data (batch, *inputs, channels), by a slice for each tap."""
    rank = len(window.inputs)
    if groups == 1:
        a = window.pad(a, 1)
        for axis, size in enumerate(window.kernel):  # one axis after the other: fewer slices than taps
            taps = [window.under_tap(a, axis, 1, k) for k in range(size)]
            a = jnp.stack(taps, 1 + rank + axis)
        return a.reshape(1, math.prod(a.shape[: 1 + rank]), -1)
    # Groups are the batch of a matrix product, which wants them first and the positions, which it sums over, last.
    a = window.pad(jnp.moveaxis(a, -1, 0), 2)
    for axis, size in enumerate(window.kernel):
        taps = [window.under_tap(a, axis, 2 + axis, k) for k in range(size)]
        a = jnp.stack(taps, 1 + axis)
    a = a.reshape(groups, -1, math.prod(window.kernel), math.prod(a.shape[1 + rank :]))
    return jnp.transpose(a, (0, 3, 2, 1)).reshape(groups, a.shape[3], -1)


def gathered(window: Window, groups: int, a: Array) -> Array:
    """The same by one gather: XLA:CPU compiles a loop for each slice.

    In memory positions come last, as that loop then runs along them; along taps and channels it divides for each entry.
    """
    a = window.pad(a, 1)
    places = window.under_taps(a.shape[1:-1])
    batch, channels = a.shape[0], a.shape[-1]
    a = lax.gather(
        a.reshape(batch, -1, channels),
        places[..., None],
        lax.GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(1,), start_index_map=(1,)),
        (batch, 1, channels),
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    a = a.reshape(len(places), batch, groups, channels // groups, -1)
    a = jnp.transpose(a, (2, 0, 3, 1, 4)).reshape(groups, len(places) * channels // groups, -1)
    # XLA folds a transposition into the product that it is for, but not through the reshape that one group makes.
    return jnp.squeeze(a, 0).T[None] if groups == 1 else jnp.swapaxes(a, 1, 2)


def copied(window: Window, groups: int, a: Array) -> Array:
    """The same on CPUs: of one group, and not a few positions, tap by tap in a loop, which copies whole rows."""
    if groups > 1 or math.prod(window.outputs) <= FEW_POSITIONS:
        return gathered(window, groups, a)
    batch, channels, taps, zero = a.shape[0], a.shape[-1], math.prod(window.kernel), np.uint32(0)
    a = window.pad(a, 1)
    apart = tuple(slice(None, None, stride) for stride in window.strides)

    def put(tap: Array, total: Array) -> Array:
        tap = tap.astype(np.uint32)
        under = lax.dynamic_slice(a, (zero, *window.start(tap), zero), (batch, *window.reach, channels))
        at = (zero, *(zero for _ in window.kernel), tap, zero)
        return lax.dynamic_update_slice(total, under[:, *apart, None, :], at)

    total = jnp.zeros((batch, *window.outputs, taps, channels), a.dtype)
    return lax.fori_loop(zero, np.uint32(taps), put, total).reshape(1, -1, taps * channels)


def folds(eqn: JaxprEqn) -> bool:
    """Whether products of positions are cheaper to apply to the data itself than to its patches (see `fold`)."""
    window = Window.of(eqn)
    possible = set(window.stretches) <= {1} and max(window.kernel, default=1) <= MOST_TAPS
    taps, inputs, outputs = (math.prod(sizes) for sizes in (window.kernel, window.inputs, window.outputs))
    return possible and taps > 1 and inputs**2 <= outputs**2 * taps


def fold(eqn: JaxprEqn, a: Array, products: Array) -> tuple[Array, Array]:
    """The data (groups, batch and positions, channels of the group), and for it what `products` are for its patches.

    With products p (..., groups, T, T) of output positions t and u, and patches a[t, k] of taps k,

        Σ_{t, u, k} a[t, k] p[t, u] b[u, k] = Σ_{x, y} a[x] q[x, y] b[y]

    where q, (..., groups, X, X) for positions x and y of the data, sums p over the taps that t, u are under x, y by.
    """
    dn, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    window = Window.of(eqn)
    rank = len(window.inputs)
    a = jnp.transpose(a, (dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1]))
    batch, lead = a.shape[0], products.shape[:-2]
    products = products.reshape(*lead, batch, *window.outputs, batch, *window.outputs)
    for axis in range(rank):  # one axis after the other: fewer terms than taps
        along, total = window.part(slice(axis, axis + 1)), jnp.zeros((), products.dtype)
        for tap in range(window.kernel[axis]):
            config = [(0, 0, 0)] * products.ndim
            (config[axis - 2 * rank - 1],) = (config[axis - rank],) = along.onto_tap([tap])
            total = total + lax.pad(products, jnp.zeros((), products.dtype), config)
        products = total
    size = batch * math.prod(window.inputs)
    return jnp.swapaxes(a.reshape(size, groups, -1), 0, 1), products.reshape(*lead, size, size)
