"""What people see of an example: an image, a text, numbers."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.dataset.data import Rows

_PIXELS = 64  # a side, at most: two hundred images of noise are 4 MB then
_LEAST = 4
_TEXT = 160  # letters
_NUMBERS = 8
_FILES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")  # how encoded images begin


class Pictures:
    """Examples of some inputs as HTML.

    Attributes:
      images: whether any input is shown as an image.
      note: how values became brightness; "" where there are no images.
    """

    def __init__(self, inputs: Sequence[Mapping[str, Any]], examples: Rows) -> None:
        """For a model's inputs as the manifest has them; the range of values is that of these examples."""
        self._inputs = [(entry["input"].removeprefix("x"), entry["name"]) for entry in inputs]
        self._ranges = {
            suffix: _range(array) for suffix, array in examples.inputs.items() if is_image(array.shape[1:], array.dtype)
        }
        files = any(array.dtype.hasobject and _is_file(array.ravel()[:1]) for array in examples.inputs.values())
        self.images = bool(self._ranges) or files
        ranges = [f"{low:.3g} (black) to {high:.3g} (white)" for low, high in self._ranges.values()]
        self.note = f"Images show values from {'; '.join(ranges)}." if ranges else ""

    def show(self, examples: Rows, place: int) -> str:
        """One example."""
        parts = []
        for suffix, name in self._inputs:
            array = examples.inputs[suffix]
            label = f'<span class="input">{html.escape(name)}</span>' if len(self._inputs) > 1 else ""
            parts.append(label + self._shown(suffix, array[place : place + 1]))
        return f'<div class="content">{"".join(parts)}</div>'

    def _shown(self, suffix: str, one: np.ndarray) -> str:
        if one.dtype.hasobject:
            if _is_file(one.ravel()):
                return _decoded(one.ravel()[0])
            return f'<span class="words">{html.escape(_cut(" ".join(map(_text, one.ravel()))))}</span>'
        if suffix in self._ranges:
            pixels = to_pixels(one[0], *self._ranges[suffix])
            return _img(png(pixels), max(pixels.shape[:2]) < 48)
        values = one.ravel()
        form = "d" if values.dtype.kind in "iub" else ".3g"
        shown = ", ".join(f"{value:{form}}" for value in values[:_NUMBERS].tolist())
        more = f" … ({values.size:,})" if values.size > _NUMBERS else ""
        return f'<span class="values">{shown}{more}</span>'


def is_image(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether arrays of this shape and dtype are images: height, width, and 1, 3 or 4 channels or none."""
    if dtype.hasobject or dtype.kind not in "fiuV" or len(shape) not in (2, 3):
        return False
    if len(shape) == 3 and shape[2] not in (1, 3, 4):
        return False
    square = len(shape) == 3 or shape[0] == shape[1]  # two axes are more often a sequence
    return square and min(shape[:2]) >= (_LEAST if len(shape) == 3 else 2 * _LEAST)


def to_pixels(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 (height, width, channels), at most 64 a side: means over squares where it is larger."""
    image = np.asarray(image, np.float64)
    image = image[..., None] if image.ndim == 2 else image
    step = -(-max(image.shape[:2]) // _PIXELS)
    if step > 1:
        height, width = (max(1, size // step) for size in image.shape[:2])
        image = image[: height * step, : width * step]
        image = image.reshape(height, min(step, image.shape[0]), width, -1, image.shape[2]).mean((1, 3))
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """A data URI."""
    import tensorflow as tf

    content: bytes = tf.io.encode_png(pixels).numpy()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _range(array: np.ndarray) -> tuple[float, float]:
    """The usual range that the values are in, else their own."""
    low, high = float(np.min(array)), float(np.max(array))
    for usual in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        if usual[0] <= low and high <= usual[1] and high - low > 0.3 * (usual[1] - usual[0]):
            return usual
    return low, high


def _is_file(content: np.ndarray) -> bool:
    """Whether the only element holds an encoded image."""
    return content.size == 1 and isinstance(content[0], bytes) and content[0].startswith(_FILES)


def _decoded(content: bytes) -> str:
    """An encoded image, small; or its size, if TensorFlow does not read its format."""
    import tensorflow as tf

    try:
        image = tf.io.decode_image(content, expand_animations=False).numpy()
    except tf.errors.InvalidArgumentError:
        return f'<span class="values">an image of {len(content):,} bytes</span>'
    return _img(png(to_pixels(image, 0, 255)), max(image.shape[:2]) < 48)


def _img(uri: str, coarse: bool) -> str:
    return f'<img alt="" src="{uri}"{" class=coarse" if coarse else ""}>'


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
