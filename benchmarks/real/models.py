"""The models of real size, as their users have them, and how each is exported.

Keras is imported where a model is built: whoever only wants the list of models pays for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import cases

VOCABULARY = 30_522  # words of BERT
WORDS = 8_000  # of the language model
LENGTH = 128


@dataclasses.dataclass(frozen=True)
class RealModel:
    """One row of the table.

    Attributes:
      name: on the command line.
      title: in the table.
      build: makes the Keras model, of one input.
      low, high: what inputs are drawn from, uniformly: the range that the model expects; whole numbers for indices.
      ntk: what the configuration says of the kernel beside its defaults.
      export: what it says of the export.
      torch: the name of the same model in `benchmarks.torch_models`.
    """

    name: str
    title: str
    build: Callable[[], Any]
    low: float
    high: float
    torch: str
    ntk: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    export: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def inputs(self, spec: Any, n: int) -> np.ndarray:
        """n examples of the model's input, which `spec` gives the shape and dtype of."""
        rng = np.random.default_rng(0)
        shape, dtype = (n, *spec.shape[1:]), np.dtype(spec.dtype)
        if dtype.kind == "i":
            return rng.integers(int(self.low), int(self.high), shape).astype(dtype)
        return rng.uniform(self.low, self.high, shape).astype(dtype)


def _application(name: str, size: int, classes: int) -> Callable[[], Any]:
    """A model of keras.applications that gives logits."""

    def build() -> Any:
        import keras

        make = getattr(keras.applications, name)
        return make(weights=None, classes=classes, input_shape=(size, size, 3), classifier_activation=None)

    return build


def _new_head() -> Any:
    """Keras' guide to transfer learning: a frozen Xception, and a last layer of one output that is trained."""
    import keras

    base = keras.applications.Xception(weights=None, input_shape=(150, 150, 3), include_top=False)
    base.trainable = False
    image = keras.Input((150, 150, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(base(image, training=False))
    return keras.Model(image, keras.layers.Dense(1, name="head")(keras.layers.Dropout(0.2)(pooled)))


def _embedded(tokens: Any, words: int, width: int) -> Any:
    """Embeddings of words and of their positions, added."""
    from keras import layers, ops

    positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    embedded = layers.Embedding(words, width, name="words")(tokens)
    return layers.Add()([embedded, layers.Embedding(tokens.shape[1], width, name="positions")(positions)])


def _block(x: Any, k: int, heads: int, *, causal: bool) -> Any:
    """Attention and a hidden layer, each normalized after its addition, as BERT has it."""
    from keras import layers

    width = x.shape[-1]
    attention = layers.MultiHeadAttention(heads, width // heads, name=f"attention_{k}")
    attended = attention(x, x, use_causal_mask=causal)
    x = layers.LayerNormalization(epsilon=1e-12, name=f"attention_norm_{k}")(layers.Add()([x, attended]))
    hidden = layers.Dense(4 * width, activation="gelu", name=f"expand_{k}")(x)
    hidden = layers.Dense(width, name=f"project_{k}")(hidden)
    return layers.LayerNormalization(epsilon=1e-12, name=f"norm_{k}")(layers.Add()([x, hidden]))


def _encoder(count: int, width: int, heads: int, words: int = VOCABULARY, length: int = LENGTH) -> Callable[[], Any]:
    """BERT with a classifier of two outputs on its pooled first token, of plain Keras layers."""

    def build() -> Any:
        from keras import Input, Model, layers

        tokens = Input((length,), dtype="int32", name="tokens")
        x = layers.LayerNormalization(epsilon=1e-12, name="embedding_norm")(_embedded(tokens, words, width))
        for k in range(count):
            x = _block(x, k, heads, causal=False)
        pooled = layers.Dense(width, activation="tanh", name="pooler")(x[:, 0])
        return Model(tokens, layers.Dense(2, name="logits")(pooled))

    return build


def _decoder(count: int = 2, width: int = 256, heads: int = 4, length: int = 32) -> Any:
    """A language model: the logits of each next word."""
    from keras import Input, Model, layers

    tokens = Input((length,), dtype="int32", name="tokens")
    x = _embedded(tokens, WORDS, width)
    for k in range(count):
        x = _block(x, k, heads, causal=True)
    return Model(tokens, layers.Dense(WORDS, name="logits")(x))


def _digits() -> Any:
    from examples.digits_train import network

    return network()


_TABLE = (
    RealModel("digits", "the demo's CNN, 8×8, 10 outputs", _digits, 0, 1, "digits"),
    RealModel(
        "mobilenetv3small",
        "MobileNetV3Small 32×32, 3 outputs",
        _application("MobileNetV3Small", 32, 3),
        0,
        255,
        "mobilenetv3small",
    ),
    RealModel("xception_head", "Xception 150×150 frozen, new head", _new_head, -1, 1, "xception_head"),
    RealModel(
        "mobilenetv2_samples",
        "MobileNetV2 224×224, 1,000 outputs, trace_samples=8",
        _application("MobileNetV2", 224, 1000),
        -1,
        1,
        "mobilenetv2",
        {"trace_samples": 8},
    ),
    RealModel(
        "efficientnetb0_samples",
        "EfficientNetB0 224×224, 1,000 outputs, trace_samples=8",
        _application("EfficientNetB0", 224, 1000),
        0,
        255,
        "efficientnetb0",
        {"trace_samples": 8},
    ),
    RealModel("resnet50", "ResNet-50 224×224, 10 outputs", _application("ResNet50", 224, 10), -1, 1, "resnet50"),
    RealModel("encoder_4", "encoder, 4 layers of 512, length 128", _encoder(4, 512, 8), 0, VOCABULARY, "encoder"),
    RealModel(
        "encoder_12",
        "encoder, 12 layers of 768, length 128 (BERT base)",
        _encoder(12, 768, 12),
        0,
        VOCABULARY,
        "encoder",
    ),
    RealModel(
        "language_model",
        "decoder, 2 layers of 256, length 32, 8,000 words, all outputs traced",
        _decoder,
        0,
        WORDS,
        "decoder",
        {"trace_axes": [1, 2]},
    ),
    RealModel(
        "mobilenetv2",
        "MobileNetV2 224×224, 1,000 outputs",
        _application("MobileNetV2", 224, 1000),
        -1,
        1,
        "mobilenetv2",
    ),
)
# In no table: to see in half a minute whether the benchmark itself runs.
_TRIAL = RealModel(
    "tiny",
    "MLP 8-16-10",
    cases.CASES["tiny"].build,
    -1,
    1,
    "mlp",
    export={"platforms": "cpu", "signatures": "ntk_symmetric", "memory_budget": "64KiB"},
)

MODELS = {model.name: model for model in (*_TABLE, _TRIAL)}
DEFAULT_MODELS = tuple(model.name for model in _TABLE)
