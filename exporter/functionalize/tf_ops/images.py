"""Resampling of images: linear in the image, so one constant matrix for each spatial axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.functionalize.tf_ops.graph import Library
from exporter.functionalize.tf_ops.registry import OpFunction, converts

_SCALE_AND_TRANSLATE_METHODS = {
    "triangle": "linear",
    "keyscubic": "cubic",
    "lanczos3": "lanczos3",
    "lanczos5": "lanczos5",
}


def _resample(images: Any, sizes: Any, matrix: Callable[[int, int], np.ndarray]) -> jax.Array:
    """(N, H, W, C) images at new (H, W) = sizes, by matrix(input size, output size), (output size, input size)."""
    rows, columns = (matrix(images.shape[axis], int(size)) for axis, size in ((1, sizes[0]), (2, sizes[1])))
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    return jnp.einsum(
        "nhwc,Hh,Ww->nHWc",
        jnp.asarray(images, dtype),
        jnp.asarray(rows, dtype),
        jnp.asarray(columns, dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


@converts("ResizeBilinear")
def _resize_bilinear(node: Any, library: Library) -> OpFunction:
    corners, centres = node.attr["align_corners"].b, node.attr["half_pixel_centers"].b

    def matrix(size: int, new_size: int) -> np.ndarray:
        return _bilinear_matrix(size, new_size, corners, centres)

    return lambda images, sizes: _resample(images, sizes, matrix)


def _bilinear_matrix(size: int, new_size: int, corners: bool, centres: bool) -> np.ndarray:
    """Between the two nearest pixels; beyond the outermost ones these, as TensorFlow's kernel."""
    scale = (size - 1) / (new_size - 1) if corners and new_size > 1 else size / new_size
    at = np.arange(new_size) * scale if not centres else (np.arange(new_size) + 0.5) * scale - 0.5
    lower = np.floor(at)
    weight = at - lower
    matrix = np.zeros((new_size, size))
    for pixel, share in ((lower, 1 - weight), (lower + 1, weight)):
        np.add.at(matrix, (np.arange(new_size), np.clip(pixel, 0, size - 1).astype(int)), share)
    return matrix


@converts("ResizeBicubic")
def _resize_bicubic(node: Any, library: Library) -> OpFunction:
    if node.attr["align_corners"].b or not node.attr["half_pixel_centers"].b:
        raise NotImplementedError("it resizes as TensorFlow 1 did; use tf.image.resize of TensorFlow 2")
    return lambda images, sizes: _resample(images, sizes, _bicubic_matrix)


def _bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """Keys' kernel with a = -1/2, at offsets rounded to 1/1024, without what lies outside, as TensorFlow's kernel."""
    centres = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    lower = np.floor(centres)
    offsets = np.rint((centres - lower) * 1024) / 1024
    distance = np.abs(np.arange(size) - (lower + offsets)[:, None])
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@converts("ResizeArea")
def _resize_area(node: Any, library: Library) -> OpFunction:
    if node.attr["align_corners"].b:
        raise NotImplementedError("it aligns corners; use tf.image.resize of TensorFlow 2")
    return lambda images, sizes: _resample(images, sizes, _area_matrix)


def _area_matrix(size: int, new_size: int) -> np.ndarray:
    """Each new pixel is the mean over the part of the axis that it covers."""
    scale = size / new_size
    starts = np.arange(new_size)[:, None] * scale
    pixels = np.arange(size)
    overlap = np.minimum(starts + scale, pixels + 1) - np.maximum(starts, pixels)
    return np.maximum(overlap, 0) / scale


@converts("ScaleAndTranslate")
def _scale_and_translate(node: Any, library: Library) -> OpFunction:
    kernel = node.attr["kernel_type"].s.decode()
    if kernel not in _SCALE_AND_TRANSLATE_METHODS:
        raise NotImplementedError(f"it resizes with the kernel {kernel!r}")
    antialias = node.attr["antialias"].b

    def resize(images: Any, sizes: Any, scale: Any, translation: Any) -> jax.Array:
        return jax.image.scale_and_translate(
            jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32)),
            (images.shape[0], int(sizes[0]), int(sizes[1]), images.shape[3]),
            spatial_dims=(1, 2),
            scale=jnp.asarray(scale),
            translation=jnp.asarray(translation),
            method=_SCALE_AND_TRANSLATE_METHODS[kernel],
            antialias=antialias,
        )

    return resize


def _blocks(node: Any) -> int:
    if node.attr["data_format"].s not in (b"", b"NHWC"):
        raise NotImplementedError(f"its data format is {node.attr['data_format'].s.decode()}")
    return int(node.attr["block_size"].i)


@converts("SpaceToDepth")
def _space_to_depth(node: Any, library: Library) -> OpFunction:
    size = _blocks(node)

    def rearrange(x: Any) -> jax.Array:
        n, height, width, channels = x.shape
        blocks = x.reshape(n, height // size, size, width // size, size, channels)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // size, width // size, size * size * channels)

    return rearrange


@converts("DepthToSpace")
def _depth_to_space(node: Any, library: Library) -> OpFunction:
    size = _blocks(node)

    def rearrange(x: Any) -> jax.Array:
        n, height, width, channels = x.shape
        blocks = x.reshape(n, height, width, size, size, channels // size**2)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, height * size, width * size, channels // size**2)

    return rearrange


@converts("ExtractImagePatches")
def _extract_patches(node: Any, library: Library) -> OpFunction:
    """Patches along the channel axis, in the order (row, column, channel)."""
    ksizes, strides, rates = (list(node.attr[key].list.i)[1:3] for key in ("ksizes", "strides", "rates"))
    padding = node.attr["padding"].s.decode()

    def extract(x: Any) -> jax.Array:
        patches = jax.lax.conv_general_dilated_patches(
            x, ksizes, strides, padding, rhs_dilation=rates, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        *outer, _ = patches.shape  # the last axis is (channel, row, column)
        channels = x.shape[-1]
        return jnp.swapaxes(patches.reshape(*outer, channels, -1), -1, -2).reshape(*outer, -1)

    return extract


@converts("LRN")
def _local_response_normalisation(node: Any, library: Library) -> OpFunction:
    """x / (bias + alpha * sum of x² over the channels within depth_radius)^beta."""
    radius, bias, alpha, beta = (
        node.attr["depth_radius"].i, node.attr["bias"].f, node.attr["alpha"].f, node.attr["beta"].f
    )  # fmt: skip
    window = (1, 1, 1, 2 * radius + 1)

    def normalise(x: jax.Array) -> jax.Array:
        padding = [(0, 0)] * 3 + [(radius, radius)]
        squares = jax.lax.reduce_window(x * x, 0.0, jax.lax.add, window, (1, 1, 1, 1), padding)
        return x * (bias + alpha * squares) ** -beta

    return normalise
