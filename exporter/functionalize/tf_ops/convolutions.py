"""Convolutions, each as one lax.conv_general_dilated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.functionalize.tf_ops.graph import Library
from exporter.functionalize.tf_ops.registry import OpFunction, converts


class _Geometry:
    """The attributes that all convolution ops share, spatial axes only."""

    def __init__(self, node: Any):
        data_format = node.attr["data_format"].s.decode()
        self.rank = len(data_format) - 2
        self.data_format = data_format
        self.channel_axis = data_format.index("C")
        self.spatial = [i for i, axis in enumerate(data_format) if axis not in "NC"]
        self.strides = self._spatial(node.attr["strides"].list.i)
        self.dilations = self._spatial(node.attr["dilations"].list.i or [1] * len(data_format))
        self._padding = node.attr["padding"].s.decode()
        explicit = np.reshape(list(node.attr["explicit_paddings"].list.i), (-1, 2))
        self._explicit = [(int(explicit[i][0]), int(explicit[i][1])) for i in self.spatial] if len(explicit) else None

    def _spatial(self, sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(sizes[i]) for i in self.spatial)

    def pads(self, input_sizes: Sequence[int], kernel_sizes: Sequence[int]) -> list[tuple[int, int]]:
        """(before, after) of each spatial axis for inputs of these spatial sizes."""
        if self._padding == "EXPLICIT":
            assert self._explicit is not None
            return self._explicit
        extents = [(k - 1) * d + 1 for k, d in zip(kernel_sizes, self.dilations, strict=True)]
        return jax.lax.padtype_to_pads(input_sizes, extents, self.strides, self._padding)

    def letters(self, kernel: str) -> tuple[str, str, str]:
        """dimension_numbers for activations in the node's format and a kernel with its channel axes as in `kernel`."""
        spatial = "DHW"[-self.rank :]
        activations = "".join(
            spatial[self.spatial.index(i)] if i in self.spatial else axis for i, axis in enumerate(self.data_format)
        )
        return activations, spatial + kernel, activations


def _same_type(*arrays: Any) -> list[jax.Array]:
    dtype = jnp.result_type(*(array.dtype for array in arrays))
    return [jnp.asarray(array, dtype) for array in arrays]


@converts("Conv2D", "Conv3D")
def _convolution(node: Any, library: Library) -> OpFunction:
    """Groups follow from the shapes, as in TensorFlow: input channels / the kernel's input channels."""
    geometry = _Geometry(node)

    def convolve(x: Any, kernel: Any) -> jax.Array:
        x, kernel = _same_type(x, kernel)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=geometry.strides,
            padding=geometry.pads([x.shape[i] for i in geometry.spatial], kernel.shape[: geometry.rank]),
            rhs_dilation=geometry.dilations,
            dimension_numbers=geometry.letters("IO"),
            feature_group_count=x.shape[geometry.channel_axis] // kernel.shape[-2],
        )

    return convolve


@converts("DepthwiseConv2dNative")
def _depthwise_convolution(node: Any, library: Library) -> OpFunction:
    geometry = _Geometry(node)

    def convolve(x: Any, kernel: Any) -> jax.Array:
        x, kernel = _same_type(x, kernel)
        *sizes, channels, multiplier = kernel.shape
        return jax.lax.conv_general_dilated(
            x,
            kernel.reshape(*sizes, 1, channels * multiplier),
            window_strides=geometry.strides,
            padding=geometry.pads([x.shape[i] for i in geometry.spatial], sizes),
            rhs_dilation=geometry.dilations,
            dimension_numbers=geometry.letters("IO"),
            feature_group_count=channels,
        )

    return convolve


@converts("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def _transposed_convolution(node: Any, library: Library) -> OpFunction:
    """The transpose of the convolution whose input has the spatial sizes in `input_sizes` (which must be known)."""
    geometry = _Geometry(node)

    def convolve(input_sizes: Any, kernel: Any, y: Any) -> jax.Array:
        kernel, y = _same_type(kernel, y)
        if kernel.shape[-1] != y.shape[geometry.channel_axis]:
            raise NotImplementedError("it is a grouped transposed convolution")
        # The op also takes the spatial sizes alone.
        sizes = [int(input_sizes[i if len(input_sizes) == y.ndim else n]) for n, i in enumerate(geometry.spatial)]
        kernel_sizes = kernel.shape[: geometry.rank]
        padding = []
        for axis, (before, _) in enumerate(geometry.pads(sizes, kernel_sizes)):
            reach = (kernel_sizes[axis] - 1) * geometry.dilations[axis]
            dilated = (y.shape[geometry.spatial[axis]] - 1) * geometry.strides[axis] + 1
            padding.append((reach - before, sizes[axis] - dilated + before))
        return jax.lax.conv_general_dilated(
            y,
            jax.lax.rev(kernel, range(geometry.rank)),
            window_strides=[1] * geometry.rank,
            padding=padding,
            lhs_dilation=geometry.strides,
            rhs_dilation=geometry.dilations,
            dimension_numbers=geometry.letters("OI"),
        )

    return convolve
