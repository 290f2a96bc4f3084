"""Convolutions where XLA's own are slow, and the patches of data under their output positions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from exporter.ntk.equations import aval, bind

Array = Any

# XLA:CPU's convolution of few positions (8×8 and fewer) is slower than a sum of matrix products, one for each tap; and
# where the kernel is larger than its input it takes scalar loops, 200 times slower (measured with the XLA of TF 2.21).
FEW_POSITIONS = 64
# A sum over more taps than 5×5 is a loop: XLA compiles one of 49 that it fuses for seconds, and runs it more slowly.
MOST_TAPS = 25


@dataclasses.dataclass(frozen=True)
class Window:
    """A convolution along its spatial axes: `output[o] = Σ_k padded[o * stride + k * dilation] w[k]`.

    Attributes:
      inputs: sizes of the data.
      kernel: sizes of the kernel.
      strides: `window_strides`.
      dilations: `rhs_dilation`, of the kernel.
      stretches: `lhs_dilation`, of the data.
      padding: low and high, after stretching; may be negative.
    """

    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    stretches: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, eqn: JaxprEqn) -> Window:
        """The window of a `conv_general_dilated` equation."""
        p, dn = eqn.params, eqn.params["dimension_numbers"]
        a, w = (aval(v).shape for v in eqn.invars)
        return cls(
            tuple(a[axis] for axis in dn.lhs_spec[2:]),
            tuple(w[axis] for axis in dn.rhs_spec[2:]),
            tuple(p["window_strides"]),
            tuple(p["rhs_dilation"]),
            tuple(p["lhs_dilation"]),
            tuple(p["padding"]),
        )

    @property
    def outputs(self) -> tuple[int, ...]:
        """Sizes of the output."""
        return tuple(
            ((n - 1) * e + 1 + lo + hi - (k - 1) * d - 1) // s + 1
            for n, k, s, d, e, (lo, hi) in zip(*dataclasses.astuple(self), strict=True)
        )

    @property
    def transposed(self) -> Window:
        """The window that, with the kernel's taps in reverse, maps derivatives of outputs to those of the data."""
        padding = []
        sizes = zip(*dataclasses.astuple(self), self.outputs, strict=True)
        for n, k, s, d, e, (lo, _), o in sizes:
            padding.append(((k - 1) * d - lo, lo + (n - 1) * e - (o - 1) * s))
        return dataclasses.replace(
            self, inputs=self.outputs, strides=self.stretches, stretches=self.strides, padding=tuple(padding)
        )

    def pad(self, a: Array, first: int, value: float = 0.0) -> Array:
        """The data padded with `value` and stretched along its spatial axes, the first of which is `first`."""
        config = [(0, 0, 0)] * a.ndim
        config[first : first + len(self.inputs)] = [
            (lo, hi, e - 1) for (lo, hi), e in zip(self.padding, self.stretches, strict=True)
        ]
        return lax.pad(a, jnp.array(value, a.dtype), config)

    def under_tap(self, padded: Array, axis: int, first: int, tap: int) -> Array:
        """The positions of padded data that tap number `tap` of a spatial axis meets; `first` as in `pad`."""
        start, stride = tap * self.dilations[axis], self.strides[axis]
        return lax.slice_in_dim(padded, start, start + (self.outputs[axis] - 1) * stride + 1, stride, first + axis)

    def onto_tap(self, tap: Sequence[int]) -> list[tuple[int, int, int]]:
        """What `lax.pad` does to put outputs where the data under this tap is, which is not stretched."""
        config = []
        for k, n, d, s, (lo, _), o in zip(
            tap, self.inputs, self.dilations, self.strides, self.padding, self.outputs, strict=True
        ):
            before = k * d - lo
            config.append((before, n - before - (o - 1) * s - 1, s - 1))
        return config


def patches(eqn: JaxprEqn, a: Array) -> Array:
    """The data under each output position: (groups, batch and positions, taps and channels of the group).

    Taps are in row-major order, and vary more slowly than channels.
    """
    dn, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    window = Window.of(eqn)
    rank = len(window.inputs)
    if groups == 1:
        a = window.pad(jnp.transpose(a, (dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1])), 1)
        for axis, size in enumerate(window.kernel):  # one axis after the other: fewer slices than taps
            taps = [window.under_tap(a, axis, 1, k) for k in range(size)]
            a = jnp.stack(taps, 1 + rank + axis)
        return a.reshape(1, math.prod(a.shape[: 1 + rank]), -1)
    # Groups are the batch of a matrix product, which wants them first and the positions, which it sums over, last.
    a = window.pad(jnp.transpose(a, (dn.lhs_spec[1], dn.lhs_spec[0], *dn.lhs_spec[2:])), 2)
    for axis, size in enumerate(window.kernel):
        taps = [window.under_tap(a, axis, 2 + axis, k) for k in range(size)]
        a = jnp.stack(taps, 1 + axis)
    a = a.reshape(groups, -1, math.prod(window.kernel), math.prod(a.shape[1 + rank :]))
    return jnp.transpose(a, (0, 3, 2, 1)).reshape(groups, a.shape[3], -1)


def _is_slow_on_cpu(eqn: JaxprEqn) -> bool:
    window = Window.of(eqn)
    few = math.prod(window.outputs) <= FEW_POSITIONS and math.prod(window.kernel) > 1
    large_kernel = any(k > n for k, n in zip(window.kernel, window.inputs, strict=True))
    return eqn.params["feature_group_count"] > 1 or few or large_kernel


def bind_on_cpu(eqn: JaxprEqn, values: Sequence[Array]) -> Sequence[Array]:
    """The outputs of a `conv_general_dilated` equation, in a form that XLA is fast at on CPUs.

    That is its own convolution with channels last, derivative included: XLA reorders the axes of others only outside
    loops, and within them takes scalar loops. Where that is slow too it is a sum over the kernel's taps, which XLA
    fuses, and whose derivative is such a sum, not the sum of padded pieces that differentiating it would give. The
    kernel's derivative is not needed, and zero: Jacobians of parameters come from the derivatives at sites.
    """
    if eqn.params["batch_group_count"] > 1:
        return bind(eqn, values)
    dn = eqn.params["dimension_numbers"]
    if len(dn.lhs_spec) == 2:  # no spatial axes: a product of matrices
        return bind(eqn, values)
    a = jnp.transpose(values[0], (dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1]))
    w = jnp.transpose(values[1], (*dn.rhs_spec[2:], dn.rhs_spec[1], dn.rhs_spec[0]))
    if _is_slow_on_cpu(eqn):
        y = _sum_over_taps(Window.of(eqn), eqn.params["feature_group_count"], a, w.reshape(-1, *w.shape[-2:]))
    else:
        y = _channels_last(eqn, a, w)
    axes = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])
    return [jnp.transpose(y, [axes.index(axis) for axis in range(len(axes))])]


def _channels_last(eqn: JaxprEqn, a: Array, w: Array) -> Array:
    """(batch, *inputs, channels) and (*kernel, channels, features) to (batch, *outputs, features)."""
    window, rank, dtype = Window.of(eqn), w.ndim - 2, a.dtype
    last = (0, rank + 1, *range(1, rank + 1))
    options = {key: eqn.params[key] for key in ("precision", "preferred_element_type")}

    def convolution(window: Window, a: Array, w: Array) -> Array:
        return lax.conv_general_dilated(
            a,
            w,
            window.strides,
            window.padding,
            window.stretches,
            window.dilations,
            lax.ConvDimensionNumbers(last, (rank + 1, rank, *range(rank)), last),
            **options,
        )

    @jax.custom_vjp
    def convolve(a: Array, w: Array) -> Array:
        return convolution(window, a, w)

    def backward(w: Array, d: Array) -> tuple[Array, Array]:
        w_t = jnp.swapaxes(jnp.flip(w, range(rank)), -1, -2).astype(d.dtype)
        return convolution(window.transposed, d, w_t).astype(dtype), jnp.zeros_like(w)

    convolve.defvjp(lambda a, w: (convolve(a, w), w), backward)
    return convolve(a, w)


def _sum_over_taps(window: Window, groups: int, a: Array, w: Array) -> Array:
    """(batch, *inputs, channels) and (taps, channels of a group, features) to (batch, *outputs, features)."""
    features = w.shape[-1] // groups

    @jax.custom_vjp
    def convolve(a: Array, w: Array) -> Array:
        return _taps(window, a, lambda k, x: _product(x, w[k], groups))

    def forward(a: Array, w: Array) -> tuple[Array, Array]:
        return convolve(a, w), w

    def backward(w: Array, d: Array) -> tuple[Array, Array]:
        # (taps, channels of a group, groups, features) to (taps, features, groups, channels), and the taps in reverse.
        w_t = jnp.transpose(w.reshape(*w.shape[:2], groups, features), (0, 3, 2, 1)).reshape(len(w), features, -1)[::-1]
        return _taps(window.transposed, d, lambda k, x: _product(x, w_t[k], groups)), jnp.zeros_like(w)

    convolve.defvjp(forward, backward)
    return convolve(a, w)


def _taps(window: Window, a: Array, product: Callable[[Any, Array], Array]) -> Array:
    """The sum of product(k, data under tap k) over the kernel's taps, which are numbered in row-major order."""
    padded, (first, *rest) = window.pad(a, 1), window.kernel

    def of_row(row: Any, x: Array) -> Array:
        """That of the taps with one index along the first axis, of the data under these."""
        total: Array = 0.0
        for k, taps in enumerate(np.ndindex(*rest)):
            under = x
            for axis, tap in enumerate(taps, 1):
                under = window.under_tap(under, axis, 1, tap)
            total = total + product(row * math.prod(rest) + k, under)
        return total

    if math.prod(window.kernel) <= MOST_TAPS:
        return sum(of_row(row, window.under_tap(padded, 0, 1, row)) for row in range(first))

    def add_row(row: Array, total: Array) -> Array:
        reach = (window.outputs[0] - 1) * window.strides[0] + 1
        x = lax.dynamic_slice_in_dim(padded, row * window.dilations[0], reach, 1)
        return total + of_row(row, lax.slice_in_dim(x, 0, reach, window.strides[0], 1))

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
