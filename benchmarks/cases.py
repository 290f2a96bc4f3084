"""The models of the speed table, with the sizes they are measured at.

Keras is imported where a model is built: whoever only wants the list of cases pays for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

OUTPUTS = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
      name: on the command line.
      title: in the table.
      n: examples of each side of the kernel.
      build: makes the Keras model, of one input, and of `OUTPUTS` logits unless the title says otherwise.
      low, high: what the inputs are drawn from, uniformly: the range that the model expects.
      checked: the first examples of each side whose kernel is compared with the float64 reference.
    """

    name: str
    title: str
    n: int
    build: Callable[[], Any]
    low: float = -1.0
    high: float = 1.0
    checked: int = 2

    def inputs(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Both sides of the kernel, of `n` examples of this shape each, float32."""
        rng = np.random.default_rng(0)
        x1, x2 = (rng.uniform(self.low, self.high, (self.n, *shape)).astype(np.float32) for _ in range(2))
        return x1, x2


def _mlp(inputs: int, *widths: int) -> Any:
    from keras import Input, Model, layers

    x = image = Input((inputs,))
    for k, width in enumerate(widths):
        x = layers.Dense(width, activation="relu", name=f"hidden_{k}")(x)
    return Model(image, layers.Dense(OUTPUTS, name="logits")(x))


def _cnn() -> Any:
    from keras import Input, Model, layers

    x = image = Input((32, 32, 3))
    for k, activation in enumerate(("relu", "relu", None)):
        x = layers.Conv2D(32, 3, activation=activation, name=f"conv_{k}")(x)
    return Model(image, layers.Dense(OUTPUTS, name="logits")(layers.Flatten()(x)))


def _transformer(outputs: int = OUTPUTS, width: int = 128, heads: int = 4, length: int = 64, blocks: int = 2) -> Any:
    from keras import Input, Model, layers

    x = tokens = Input((length, width))
    for k in range(blocks):
        attended = layers.MultiHeadAttention(heads, width // heads, name=f"attention_{k}")(x, x)
        x = layers.LayerNormalization(name=f"attention_norm_{k}")(layers.Add()([x, attended]))
        hidden = layers.Dense(4 * width, activation="gelu", name=f"expand_{k}")(x)
        hidden = layers.Dense(width, name=f"project_{k}")(hidden)
        x = layers.LayerNormalization(name=f"norm_{k}")(layers.Add()([x, hidden]))
    return Model(tokens, layers.Dense(outputs, name="logits")(layers.GlobalAveragePooling1D()(x)))


def _lstm(units: int = 64, length: int = 32, features: int = 32) -> Any:
    from keras import Input, Model, layers

    sequence = Input((length, features))
    return Model(sequence, layers.Dense(OUTPUTS, name="logits")(layers.LSTM(units, name="lstm")(sequence)))


def _application(name: str) -> Callable[[], Any]:
    """A model of keras.applications on 64×64 images."""

    def build() -> Any:
        import keras

        make = getattr(keras.applications, name)
        return make(weights=None, classes=OUTPUTS, input_shape=(64, 64, 3), classifier_activation=None)

    return build


_TABLE = (
    Case("mlp", "MLP 784-1024-1024-10", 32, lambda: _mlp(784, 1024, 1024), checked=8),
    Case("cnn", "CNN, 3 layers, 32×32×3", 16, _cnn, checked=8),
    Case("resnet50", "ResNet-50 64×64", 4, _application("ResNet50")),
    Case("mobilenet", "MobileNet 64×64", 2, _application("MobileNet")),
    Case("mobilenetv2", "MobileNetV2 64×64", 2, _application("MobileNetV2")),
    Case("mobilenetv3small", "MobileNetV3Small 64×64", 2, _application("MobileNetV3Small"), 0, 255),
    Case("efficientnetb0", "EfficientNetB0 64×64", 2, _application("EfficientNetB0"), 0, 255),
    Case("convnext_tiny", "ConvNeXt-Tiny 64×64", 2, _application("ConvNeXtTiny"), 0, 255),
    Case("transformer", "Transformer, 2 layers, width 128, length 64", 8, _transformer, checked=8),
    Case("transformer_1000", "the Transformer with 1,000 outputs", 2, lambda: _transformer(1000)),
    Case("lstm", "LSTM, 64 units, length 32", 16, _lstm, checked=16),
)
# In no table: to see in seconds whether the benchmark itself runs.
_TRIAL = Case("tiny", "MLP 8-16-10", 3, lambda: _mlp(8, 16), checked=3)

CASES = {case.name: case for case in (*_TABLE, _TRIAL)}
DEFAULT_CASES = tuple(case.name for case in _TABLE)


def keep_signals_alive(model: Any, images: np.ndarray) -> None:
    """Gives normalization statistics and scales the values that training gives them, roughly.

    With a new model's BatchNorm statistics signals vanish on the way up, and ConvNeXt's blocks begin switched off, by
    scales of 1e-6: a kernel of such a model hardly depends on most of its parameters, and would check nothing.
    """
    import keras

    from exporter.compat.keras_names import all_layers_in

    layers = [layer for layer in all_layers_in(model) if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    if layers:
        model(images, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        # One variance for all channels: of their own variances some are tiny, which makes rounding errors grow.
        square = keras.ops.mean(layer.moving_variance + layer.moving_mean**2)
        layer.moving_variance.assign(keras.ops.full(layer.moving_variance.shape, square))
        layer.moving_mean.assign(keras.ops.zeros(layer.moving_mean.shape))
    for layer in all_layers_in(model):
        if layer.name.endswith("layer_scale"):
            layer.gamma.assign(keras.ops.full(layer.gamma.shape, 0.5))
