"""Where a window's taps meet data, as of convolutions and maxima, and how XLA:CPU likes that computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk.equations import aval

Array = Any

# XLA:CPU's convolution of few positions (8×8 and fewer) is slower than products of matrices; and where the kernel is
# larger than its input it takes scalar loops, 200 times slower (measured with the XLA of TF 2.21).
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
    def reach(self) -> tuple[int, ...]:
        """Sizes of the data, padded, that a tap meets, from the first output to the last."""
        return tuple((o - 1) * s + 1 for o, s in zip(self.outputs, self.strides, strict=True))

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
        start = tap * self.dilations[axis]
        return lax.slice_in_dim(padded, start, start + self.reach[axis], self.strides[axis], first + axis)

    def start(self, tap: Array) -> list[Array]:
        """Where in padded data the tap of this number, in row-major order, meets the first output; all in uint32."""
        return [k * np.uint32(d) for k, d in zip(unraveled(tap, self.kernel), self.dilations, strict=True)]

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
        for k, n, d, s, (lo, _), reach in zip(
            tap, self.inputs, self.dilations, self.strides, self.padding, self.reach, strict=True
        ):
            before = k * d - lo
            config.append((before, n - before - reach, s - 1))
        return config


def _replaced(values: tuple[Any, ...], axis: int, value: Any) -> tuple[Any, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def unraveled(number: Array, sizes: Sequence[int]) -> list[Array]:
    """The index of this number of an array of these sizes, in uint32, of which XLA need not ask the sign."""
    index = list[Array]()
    for size in reversed(sizes):
        index.insert(0, lax.rem(number, np.uint32(size)))
        number = lax.div(number, np.uint32(size))
    return index


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
