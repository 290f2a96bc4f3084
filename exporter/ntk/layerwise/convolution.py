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

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk.equations import aval, bind

Array = Any

Options = tuple[tuple[str, Any], ...]  # of products and convolutions, by name
# convolve(window, groups, options, data, kernel), see `by_xla`.
Convolve = Callable[["Window", int, Options, Array, Array], Array]
# make(window, groups, data): patches, see `sliced`.
Patches = Callable[["Window", int, Array], Array]

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

    def phased(self, axis: int) -> bool:
        """Whether data is stretched along an axis, and the outputs can be computed phase by phase."""
        plain = self.strides[axis] == self.dilations[axis] == 1
        return self.stretches[axis] > 1 and plain and self.outputs[axis] > 0

    def phase(self, axis: int, k: int) -> tuple[int, Window]:
        """The window of outputs k, k + e, … of an axis stretched by e; and the first of the taps that it has."""
        e, n, (lo, _) = self.stretches[axis], self.inputs[axis], self.padding[axis]
        first = (lo - k) % e
        taps = len(range(first, self.kernel[axis], e))
        before = (lo - k - first) // e
        after = -(-self.outputs[axis] // e) + taps - 1 - n - before
        return first, dataclasses.replace(
            self,
            kernel=_replaced(self.kernel, axis, taps),
            stretches=_replaced(self.stretches, axis, 1),
            padding=_replaced(self.padding, axis, (before, after)),
        )

    def met(self, axis: int) -> tuple[int, Window]:
        """The first of an axis' taps that are ever over data, and the window of these: the others are over padding.

        Of small data with large kernels these are few: of a single position one of 5×5.
        """
        n, k, s, d, e, (lo, hi) = (sizes[axis] for sizes in dataclasses.astuple(self))

        def over_data(tap: int) -> bool:
            start = tap * d - lo  # of output 0 in the data; of the first output not before it:
            output = max(0, -(start // s))
            return output < self.outputs[axis] and start + output * s <= (n - 1) * e

        over = [tap for tap in range(k) if over_data(tap)] or [0]
        first, last = over[0], over[-1]
        return first, dataclasses.replace(
            self,
            kernel=_replaced(self.kernel, axis, last - first + 1),
            padding=_replaced(self.padding, axis, (lo - first * d, hi - (k - 1 - last) * d)),
        )

    def part(self, axes: slice) -> Window:
        """The window along some of the axes."""
        return Window(*(sizes[axes] for sizes in dataclasses.astuple(self)))

    @property
    def outputs(self) -> tuple[int, ...]:
        """Sizes of the output."""
        return tuple(
            ((n - 1) * e + 1 + lo + hi - (k - 1) * d - 1) // s + 1
            for n, k, s, d, e, (lo, hi) in zip(*dataclasses.astuple(self), strict=True)
        )

    @property
    def pointwise(self) -> bool:
        """Whether every output is of the data at its own position alone."""
        ones = {*self.kernel, *self.strides, *self.stretches} <= {1}
        return ones and not any(map(any, self.padding))

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

    def under_taps(self, padded: Sequence[int]) -> Array:
        """(taps, outputs): where in padded data of these sizes each tap meets each output, all in row-major order."""
        place = jnp.zeros([*self.kernel, *self.outputs], jnp.int32)
        for axis, size in enumerate(padded):
            tap, output = (lax.broadcasted_iota(jnp.int32, place.shape, k) for k in (axis, axis + len(padded)))
            place = place * size + output * self.strides[axis] + tap * self.dilations[axis]
        return place.reshape(math.prod(self.kernel), -1)

    def onto_tap(self, tap: Sequence[int]) -> list[tuple[int, int, int]]:
        """What `lax.pad` does to put outputs where the data under this tap is, which is not stretched."""
        config = []
        for k, n, d, s, (lo, _), o in zip(
            tap, self.inputs, self.dilations, self.strides, self.padding, self.outputs, strict=True
        ):
            before = k * d - lo
            config.append((before, n - before - (o - 1) * s - 1, s - 1))
        return config


def _replaced(values: tuple[Any, ...], axis: int, value: Any) -> tuple[Any, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def patches(make: Patches, eqn: JaxprEqn, a: Array) -> Array:
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
    reach = [(o - 1) * stride + 1 for o, stride in zip(window.outputs, window.strides, strict=True)]
    apart = tuple(slice(None, None, stride) for stride in window.strides)

    def put(tap: Array, total: Array) -> Array:
        tap = tap.astype(np.uint32)
        starts = [k * np.uint32(d) for k, d in zip(unraveled(tap, window.kernel), window.dilations, strict=True)]
        under = lax.dynamic_slice(a, (zero, *starts, zero), (batch, *reach, channels))
        at = (zero, *(zero for _ in starts), tap, zero)
        return lax.dynamic_update_slice(total, under[:, *apart, None, :], at)

    total = jnp.zeros((batch, *window.outputs, taps, channels), a.dtype)
    return lax.fori_loop(zero, np.uint32(taps), put, total).reshape(1, -1, taps * channels)


def unraveled(number: Array, sizes: Sequence[int]) -> list[Array]:
    """The index of this number of an array of these sizes, in uint32, of which XLA need not ask the sign."""
    index = list[Array]()
    for size in reversed(sizes):
        index.insert(0, lax.rem(number, np.uint32(size)))
        number = lax.div(number, np.uint32(size))
    return index


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
        starts = [k * np.uint32(d) for k, d in zip(unraveled(tap, window.kernel), window.dilations, strict=True)]
        under = lax.pad(lax.dynamic_index_in_dim(products, tap, d.ndim - 1, keepdims=False), nothing, apart)
        at = (zero, *starts, zero)
        return lax.dynamic_update_slice(total, lax.dynamic_slice(total, at, under.shape) + under, at)

    sizes, config = [], []
    for n, k, s, dilation, _, (lo, _), o in zip(*dataclasses.astuple(window), window.outputs, strict=True):
        sizes.append((k - 1) * dilation + (o - 1) * s + 1)
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


def interleaved(
    window: Window, axis: int, convolve: Callable[[Window, Array], Array], w: Array, first: int = 1
) -> Array:
    """A convolution of data that is stretched along an axis as several of the data itself; `first` as in `pad`.

    Stretching by e puts e - 1 zeros between the data, so that every e-th output meets every e-th tap.
    """
    e, size = window.stretches[axis], window.outputs[axis]
    outputs = {
        k: convolve(phase, lax.slice_in_dim(w, tap, None, e, axis))
        for k, (tap, phase) in enumerate(window.phase(axis, k) for k in range(e))
        if phase.kernel[axis]
    }
    at = axis + first
    if len(outputs) == 1:  # as of one tap: nothing to be stacked
        ((k, y),) = outputs.items()
        config = [(0, 0, 0)] * y.ndim
        config[at] = (k, size - k - ((y.shape[at] - 1) * e + 1), e - 1)
        return lax.pad(y, jnp.zeros((), y.dtype), config)
    zeros = jnp.zeros_like(next(iter(outputs.values())))
    y = jnp.stack([outputs.get(k, zeros) for k in range(e)], at + 1)
    return lax.slice_in_dim(y.reshape(*y.shape[:at], -1, *y.shape[at + 2 :]), 0, size, 1, at)


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
