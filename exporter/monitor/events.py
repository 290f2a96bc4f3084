"""TensorBoard's files, written by TensorFlow alone, which since 2.21 comes without TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from exporter.monitor.measurement import Measurement

_BUCKETS = 30
_PIXELS = 256  # of a side of an image, at least
_ROUNDING = float(np.finfo(np.float32).eps)  # relative to the largest eigenvalue: those below are not told from zero
# From -1 to 1: blue, white at 0, red (ColorBrewer's RdBu).
_COLOURS = np.array([(5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)], np.float64)


class Events:
    """Scalars, a histogram and an image of each measurement, at the step of its number of epochs."""

    def __init__(self, log_dir: str) -> None:
        """Takes the directory of the file that the first measurement begins; until then it may be copied."""
        self._log_dir = log_dir
        self._writer: Any = None

    def write(self, measurement: Measurement, kernel: np.ndarray) -> None:
        """Writes a measurement of a kernel; without picture if it is not finite."""
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._log_dir)
        with self._writer.as_default(step=measurement.epochs):
            for name, value in measurement.scalars.items():
                _write(f"ntk/{name}", "scalars", tf.constant(value, tf.float32))
            if np.all(np.isfinite(kernel)):
                logarithms = log10_eigenvalues(measurement.eigenvalues)
                _write("ntk/log10_eigenvalues", "histograms", tf.constant(histogram(logarithms), tf.float64))
                _write("ntk/kernel", "images", _image(heat_map(kernel)))
        self._writer.flush()


def log10_eigenvalues(eigenvalues: np.ndarray) -> np.ndarray:
    """Their logarithms; those that rounding does not tell from zero as the smallest that it does."""
    smallest = max(_ROUNDING * float(np.max(eigenvalues)), np.finfo(np.float64).tiny)
    return np.log10(np.maximum(eigenvalues, smallest))


def histogram(values: np.ndarray) -> np.ndarray:
    """(buckets, 3): left and right edge and count of each, as TensorBoard's plugin takes it."""
    counts, edges = np.histogram(values, _BUCKETS)
    return np.stack([edges[:-1], edges[1:], counts], 1)


def heat_map(kernel: np.ndarray) -> np.ndarray:
    """A kernel's cosines Kᵢⱼ / √(Kᵢᵢ Kⱼⱼ) as colours (pixels, pixels, 3), from blue (-1) by white (0) to red (1)."""
    norms = np.sqrt(np.maximum(np.diagonal(kernel).astype(np.float64), np.finfo(np.float32).tiny))
    cosines = np.clip(kernel / norms / norms[:, None], -1, 1)
    at = np.linspace(-1, 1, len(_COLOURS))
    colours = np.stack([np.interp(cosines, at, channel) for channel in _COLOURS.T], -1).round().astype(np.uint8)
    times = -(-_PIXELS // len(kernel))
    return colours.repeat(times, 0).repeat(times, 1)


def _image(pixels: np.ndarray) -> tf.Tensor:
    """As TensorBoard's plugin takes it: width, height, PNG."""
    height, width = map(str, pixels.shape[:2])
    return tf.stack([width, height, tf.io.encode_png(pixels)])


def _write(tag: str, plugin: str, value: tf.Tensor) -> None:
    tf.summary.write(tag, value, metadata=_metadata(plugin))


def _metadata(plugin: str) -> Any:
    """Which of TensorBoard's plugins shows a value, by the only public way to such a message."""
    metadata = tf.compat.v1.Summary().value.add().metadata
    metadata.plugin_data.plugin_name = plugin
    metadata.data_class = {"scalars": 1, "histograms": 2, "images": 3}[plugin]  # SCALAR, TENSOR, BLOB_SEQUENCE
    return metadata
