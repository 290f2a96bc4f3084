"""Convolutions where XLA's own are slow, and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk.equations import bind
from exporter.ntk.layerwise.patches import gathered
from exporter.ntk.layerwise.window import FEW_POSITIONS, MOST_TAPS, Window, interleaved

Array = Any

Options = tuple[tuple[str, Any], ...]  # of products and convolutions, by name
# convolve(window, groups, options, data, kernel), see `by_xla`.
Convolve = Callable[[Window, int, Options, Array, Array], Array]


def bind_channels_last(
    convolve: Convolve, transposed: Convolve, eqn: JaxprEqn, values: Sequence[Array]
) -> Sequence[Array]:
    """The outputs of a `conv_general_dilated` equation, by a convolution with channels last, derivative included.

    XLA:CPU reorders the axes of others only outside loops, and within them takes scalar loops. The data's derivative is
    what `transposed` makes of the outputs', with the same window and kernel, not what differentiating `convolve` would
    give. The kernel's derivative is not needed, and zero: Jacobians of parameters come from the derivatives at sites.
    Of one tap it is a product of matrices, for whose derivative XLA need not transpose the kernel.
    """
    dn, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    rank = len(dn.lhs_spec) - 2
    if eqn.params["batch_group_count"] > 1 or rank == 0:  # without spatial axes it is a product of matrices
        return bind(eqn, values)
    window, dtype = Window.of(eqn), values[0].dtype
    options = tuple((key, eqn.params[key]) for key in ("precision", "preferred_element_type"))

    @jax.custom_vjp
    def differentiable(a: Array, w: Array) -> Array:
        return convolve(window, groups, options, a, w)

    def backward(w: Array, d: Array) -> tuple[Array, Array]:
        return transposed(window, groups, options, d, w.astype(d.dtype)).astype(dtype), jnp.zeros_like(w)

    differentiable.defvjp(lambda a, w: (differentiable(a, w), w), backward)
    a = jnp.transpose(values[0], (dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1]))
    if window.pointwise and groups == 1:
        w = lax.squeeze(values[1], dn.rhs_spec[2:])
        channels = int(dn.rhs_spec[1] > dn.rhs_spec[0])  # which of the two axes left they are
        y = lax.dot_general(a, w, (((a.ndim - 1,), (channels,)), ((), ())), **dict(options))
    else:
        y = differentiable(a, jnp.transpose(values[1], (*dn.rhs_spec[2:], dn.rhs_spec[1], dn.rhs_spec[0])))
    axes = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])
    return [jnp.transpose(y, [axes.index(axis) for axis in range(len(axes))])]


def by_xla(window: Window, groups: int, options: Options, a: Array, w: Array) -> Array:
    """(batch, *inputs, channels) and (*kernel, channels of a group, features) to (batch, *outputs, features)."""
    rank = len(window.inputs)
    last = (0, rank + 1, *range(1, rank + 1))
    return lax.conv_general_dilated(
        a,
        w,
        window.strides,
        window.padding,
        window.stretches,
        window.dilations,
        lax.ConvDimensionNumbers(last, (rank + 1, rank, *range(rank)), last),
        feature_group_count=groups,
        **dict(options),
    )


def on_cpu(window: Window, groups: int, options: Options, a: Array, w: Array) -> Array:
    """The same as `by_xla`, where XLA:CPU's is slow as a sum over the kernel's taps, which XLA fuses."""
    axis = next(filter(window.phased, range(len(window.inputs))), None)
    if axis is not None:
        return interleaved(window, axis, lambda phase, w: on_cpu(phase, groups, options, a, w), w)
    window, w = _met(window, w)
    if groups > 1:
        return _taps(window, groups, a, w)
    if math.prod(window.outputs) <= FEW_POSITIONS and math.prod(window.kernel) > 1:
        y = gathered(window, 1, a)[0] @ w.reshape(-1, w.shape[-1])
        return y.reshape(a.shape[0], *window.outputs, -1)
    return _ungrouped(window, options, a, w)


def _ungrouped(window: Window, options: Options, a: Array, w: Array) -> Array:
    """XLA's own of at most two spatial axes: that of three is far slower than a sum of these."""
    rank = len(window.inputs)
    if any(k > n for k, n in zip(window.kernel, window.inputs, strict=True)):
        return _taps(window, 1, a, w)
    if rank > 2:
        first, rest = window.part(slice(1)), window.part(slice(1, None))
        padded = first.pad(a, 1)
        total: Array = 0.0
        for tap in range(len(w)):
            x = first.under_tap(padded, 0, 1, tap)
            y = _ungrouped(rest, options, x.reshape(-1, *x.shape[2:]), w[tap])
            total = total + y.reshape(*x.shape[:2], *y.shape[1:])
        return total
    return by_xla(window, 1, options, a, w)


def _taps(window: Window, groups: int, a: Array, w: Array) -> Array:
    """The sum over the kernel's taps of products of the data under them."""
    padded, (first, *rest) = window.pad(a, 1), window.kernel
    w = w.reshape(-1, *w.shape[-2:])

    def of_row(row: Any, x: Array) -> Array:
        """That of the taps with one index along the first axis, of the data under these."""
        total: Array = 0.0
        for k, taps in enumerate(np.ndindex(*rest)):
            under = x
            for axis, tap in enumerate(taps, 1):
                under = window.under_tap(under, axis, 1, tap)
            total = total + _product(under, w[row * math.prod(rest) + k], groups)
        return total

    if math.prod(window.kernel) <= MOST_TAPS:
        return sum(of_row(row, window.under_tap(padded, 0, 1, row)) for row in range(first))

    def add_row(row: Array, total: Array) -> Array:
        x = lax.dynamic_slice_in_dim(padded, row * window.dilations[0], window.reach[0], 1)
        return total + of_row(row, lax.slice_in_dim(x, 0, None, window.strides[0], 1))

    specs = jax.eval_shape(lambda x: of_row(0, x), window.under_tap(padded, 0, 1, 0))
    return lax.fori_loop(0, first, add_row, jnp.zeros(specs.shape, specs.dtype))


def _product(x: Array, w: Array, groups: int) -> Array:
    """(..., channels) and (channels of a group, features) to (..., features), group by group."""
    if groups == 1:
        return x @ w
    channels, features = w.shape[0], w.shape[1] // groups
    if channels == 1:
        return (jnp.repeat(x, features, -1) if features > 1 else x) * w[0]
    if features == 1:
        return jnp.sum(x.reshape(*x.shape[:-1], groups, channels) * w.T, -1)
    grouped = x.reshape(*x.shape[:-1], groups, channels)
    y = jnp.einsum("...gi,igj->...gj", grouped, w.reshape(channels, groups, features))
    return y.reshape(*y.shape[:-2], -1)


def transposed_by_xla(window: Window, groups: int, options: Options, d: Array, w: Array) -> Array:
    """Derivatives of the data from those of the outputs, with the kernel of the convolution itself."""
    return by_xla(window.transposed, groups, options, d, _reversed(w, groups))


def transposed_on_cpu(window: Window, groups: int, options: Options, d: Array, w: Array) -> Array:
    """The same; of few positions by one product for all taps, for which the kernel stays as it lies in memory.

    What reversing and transposing it takes does not depend on the number of positions, and what the products take to be
    added up does.
    """
    if groups == 1 and set(window.stretches) <= {1}:
        window, w = _met(window, w)
        if math.prod(window.kernel) > 1 and math.prod(window.outputs) <= max(FEW_POSITIONS, w.shape[-1]):
            return _onto_taps(window, options, d, w)
    return on_cpu(window.transposed, groups, options, d, _reversed(w, groups))


def _onto_taps(window: Window, options: Options, d: Array, w: Array) -> Array:
    """Products with the kernel of every tap, each added where the data under that tap is."""
    zero, none, channels = np.uint32(0), (0, 0, 0), w.shape[-2]
    w = w.reshape(-1, w.shape[-1])  # taps and channels
    products = lax.dot_general(d, w, (((d.ndim - 1,), (1,)), ((), ())), **dict(options))
    products = products.reshape(*d.shape[:-1], -1, channels)
    nothing = jnp.zeros((), products.dtype)
    apart = [none, *((0, 0, stride - 1) for stride in window.strides), none]

    def add(tap: Array, total: Array) -> Array:
        tap = tap.astype(np.uint32)
        under = lax.pad(lax.dynamic_index_in_dim(products, tap, d.ndim - 1, keepdims=False), nothing, apart)
        at = (zero, *window.start(tap), zero)
        return lax.dynamic_update_slice(total, lax.dynamic_slice(total, at, under.shape) + under, at)

    sizes, config = [], []
    for n, k, dilation, (lo, _), reach in zip(
        window.inputs, window.kernel, window.dilations, window.padding, window.reach, strict=True
    ):
        sizes.append((k - 1) * dilation + reach)
        config.append((-lo, n + lo - sizes[-1], 0))
    total = jnp.zeros((d.shape[0], *sizes, channels), products.dtype)
    total = lax.fori_loop(zero, np.uint32(math.prod(window.kernel)), add, total)
    return lax.pad(total, nothing, [none, *config, none])


def _reversed(w: Array, groups: int) -> Array:
    """(*kernel, channels of a group, groups * features) to (*kernel, features, groups * channels), taps in reverse."""
    w = jnp.swapaxes(w.reshape(*w.shape[:-1], groups, -1), -1, -3)
    return jnp.flip(w.reshape(*w.shape[:-2], -1), range(w.ndim - 3))


def _met(window: Window, w: Array) -> tuple[Window, Array]:
    """The window and kernel without the taps that are never over data."""
    for axis in range(len(window.inputs)):
        first, window = window.met(axis)
        w = lax.slice_in_dim(w, first, first + window.kernel[axis], 1, axis)
    return window, w
