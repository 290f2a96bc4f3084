"""A zoo of small models for the tests of every stage: each kind of layer, and each way in which a model can be given.

    for entry in ZOO: entry.id, entry.build() -> model, entry.options -> keyword arguments of functionalize
    entry.call(model, inputs) -> the chosen output, computed by TensorFlow
    random_inputs(functional.inputs, batch_size)

Weights are random, biases and normalisation statistics included, and the same in every process.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

VOCABULARY = 5  # integer inputs are below it


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the zoo."""

    id: str
    build: Callable[[], Any]
    call: Callable[[Any, tuple[np.ndarray, ...]], Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tags: frozenset[str] = frozenset()


ZOO: list[Entry] = []


def by_id(model_id: str) -> Entry:
    """The zoo's model of that id."""
    return next(entry for entry in ZOO if entry.id == model_id)


def tagged(tag: str) -> list[Entry]:
    """The zoo's models of a tag: rnn, keras2, module."""
    return [entry for entry in ZOO if tag in entry.tags]


def random_inputs(specs: Iterable[Any], batch_size: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Normal or integer arrays of the specs' shapes (`shape` without its batch axis, `dtype`)."""
    rng = np.random.default_rng(seed)
    arrays = []
    for spec in specs:
        shape = (batch_size, *spec.shape[1:])
        is_float = np.issubdtype(np.dtype(spec.dtype), np.floating)
        arrays.append((rng.normal(size=shape) if is_float else rng.integers(0, VOCABULARY, shape)).astype(spec.dtype))
    return tuple(arrays)


def randomize(variables: Iterable[Any], seed: int = 0) -> None:
    """Assigns random values: kernels of unit gain, scales near 1, positive variances, the rest of size 0.3."""
    rng = np.random.default_rng(seed)
    for variable in variables:
        name, shape = getattr(variable, "path", variable.name), tuple(variable.shape)
        dtype = variable.dtype if isinstance(variable.dtype, str) else variable.dtype.name
        if not tf.as_dtype(dtype).is_floating:  # which bfloat16 is not to NumPy
            continue
        noise = rng.normal(size=shape)
        if "variance" in name:
            value = 0.5 + np.abs(noise)
        elif "gamma" in name or "scale" in name:
            value = 1 + 0.3 * noise
        elif len(shape) > 1:
            value = noise / np.sqrt(np.prod(shape[:-1]))
        else:
            value = 0.3 * noise
        variable.assign(value.astype(np.float32))


def _zoo(
    *, call: Callable[..., Any] | None = None, options: Mapping[str, Any] | None = None, tags: Sequence[str] = ()
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Decorator: adds a Keras model's builder to the zoo, its weights randomised."""

    def register(builder: Callable[[], Any]) -> Callable[[], Any]:
        def build() -> Any:
            model = builder()
            randomize(model.variables, seed=zlib.crc32(builder.__name__.encode()))
            return model

        def default_call(model: Any, inputs: tuple[np.ndarray, ...]) -> Any:
            return model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)

        ZOO.append(Entry(builder.__name__, build, call or default_call, options or {}, frozenset(tags)))
        return build

    return register


L = keras.layers


def _sequential(shape: tuple[int, ...], *layers: Any, dtype: str = "float32") -> keras.Model:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


# ------------------------------------------------------------------------------------- dense layers and activations


@_zoo()
def mlp() -> keras.Model:
    return _sequential((6,), L.Dense(8, activation="relu"), L.Dense(7, activation="tanh"), L.Dense(3))


@_zoo()
def activations() -> keras.Model:
    return _sequential(
        (6,),
        L.Dense(6, activation="gelu"),
        L.Dense(6, activation="swish"),
        L.Dense(6, activation="elu"),
        L.Dense(6, activation="mish"),
        L.Dense(6, activation="relu6"),
        L.Dense(6, activation="hard_sigmoid"),
        L.LeakyReLU(),
        L.Dense(4, activation="softmax"),
    )


@_zoo()
def prelu() -> keras.Model:
    return _sequential((5, 4), L.Dense(3), L.PReLU(shared_axes=[1]), L.Flatten(), L.Dense(2))


@_zoo()
def einsum_dense() -> keras.Model:
    return _sequential((4, 3), L.EinsumDense("abc,cde->abde", (4, 3, 2), bias_axes="de"), L.Flatten(), L.Dense(2))


# ----------------------------------------------------------------------------------------- convolutions and pooling


@_zoo()
def conv1d() -> keras.Model:
    return _sequential(
        (9, 2),
        L.Conv1D(4, 3, strides=2, padding="same", activation="relu"),
        L.Conv1D(3, 2, dilation_rate=2, padding="causal", activation="tanh"),
        L.AveragePooling1D(2, padding="same"),
        L.Flatten(),
        L.Dense(2),
    )


@_zoo()
def conv2d() -> keras.Model:
    return _sequential(
        (7, 6, 2),
        L.Conv2D(4, 3, padding="same", activation="relu"),
        L.MaxPooling2D(2),
        L.Conv2D(3, 2, strides=(2, 1), padding="valid", activation="relu"),
        L.Flatten(),
        L.Dense(3),
    )


@_zoo()
def conv3d() -> keras.Model:
    return _sequential(
        (4, 4, 3, 2), L.Conv3D(3, 2, padding="same", activation="tanh"), L.MaxPooling3D(2), L.Flatten(), L.Dense(2)
    )


@_zoo()
def conv1d_transpose() -> keras.Model:
    return _sequential((4, 3), L.Conv1DTranspose(2, 3, strides=2, padding="same"), L.GlobalMaxPooling1D(), L.Dense(2))


@_zoo()
def conv2d_transpose() -> keras.Model:
    return _sequential(
        (3, 3, 2),
        L.Conv2DTranspose(3, 3, strides=2, padding="valid", output_padding=1, activation="tanh"),
        L.GlobalAveragePooling2D(),
        L.Dense(2),
    )


@_zoo()
def conv3d_transpose() -> keras.Model:
    return _sequential(
        (2, 2, 3, 2), L.Conv3DTranspose(2, 2, strides=2, padding="same"), L.AveragePooling3D(2), L.Flatten(), L.Dense(2)
    )


@_zoo()
def separable_conv() -> keras.Model:
    return _sequential(
        (5, 5, 3), L.SeparableConv2D(4, 3, depth_multiplier=2, activation="relu"), L.Flatten(), L.Dense(2)
    )


@_zoo()
def depthwise_conv() -> keras.Model:
    return _sequential(
        (6, 5, 3),
        L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, activation="tanh"),
        L.GlobalAveragePooling2D(),
        L.Dense(2),
    )


@_zoo()
def grouped_conv() -> keras.Model:
    return _sequential((5, 4, 4), L.Conv2D(6, 3, groups=2, padding="same", activation="tanh"), L.Flatten(), L.Dense(2))


@_zoo()
def dilated_conv() -> keras.Model:
    return _sequential((7, 6, 2), L.Conv2D(3, 2, dilation_rate=(2, 3), activation="tanh"), L.Flatten(), L.Dense(2))


@_zoo()
def average_pooling() -> keras.Model:
    return _sequential(
        (7, 5, 2), L.Conv2D(3, 2), L.AveragePooling2D(3, strides=2, padding="same"), L.Flatten(), L.Dense(2)
    )


@_zoo()
def upsampling() -> keras.Model:
    return _sequential(
        (4, 3, 2),
        L.Conv2D(2, 2, padding="same", activation="tanh"),
        L.UpSampling2D(2, interpolation="bilinear"),
        L.ZeroPadding2D(1),
        L.Conv2D(2, 3, activation="tanh"),
        L.Cropping2D(1),
        L.Flatten(),
        L.Dense(2),
    )


# -------------------------------------------------------------------------------------------------- normalisation


@_zoo()
def batch_norm() -> keras.Model:
    return _sequential(
        (5, 5, 2), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.Dropout(0.5), L.Flatten(), L.Dense(2)
    )


@_zoo()
def layer_norm() -> keras.Model:
    return _sequential(
        (4, 5), L.Dense(6), L.LayerNormalization(), L.Dense(5), L.RMSNormalization(), L.Flatten(), L.Dense(2)
    )


@_zoo()
def group_norm() -> keras.Model:
    return _sequential((5, 4, 2), L.Conv2D(4, 2), L.GroupNormalization(2), L.ELU(), L.Flatten(), L.Dense(2))


# ------------------------------------------------------------------------------------------- sequences and attention


@_zoo()
def embedding() -> keras.Model:
    return _sequential(
        (6,), L.Embedding(VOCABULARY, 4), L.Conv1D(3, 2, activation="tanh"), L.Flatten(), L.Dense(2), dtype="int32"
    )


@_zoo()
def attention() -> keras.Model:
    tokens = keras.Input((5, 4))
    x = L.Add()([tokens, L.MultiHeadAttention(2, 3)(tokens, tokens, use_causal_mask=True)])
    x = L.LayerNormalization()(x)
    x = L.Add()([x, L.Dense(4)(L.Dense(8, activation="gelu")(x))])
    return keras.Model(tokens, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


@_zoo(tags=["rnn"])
def lstm() -> keras.Model:
    return _sequential((4, 3), L.LSTM(4, return_sequences=True), L.LSTM(3, go_backwards=True), L.Dense(2))


@_zoo(tags=["rnn"])
def gru() -> keras.Model:
    return _sequential((4, 3), L.GRU(4), L.Dense(2))


@_zoo(tags=["rnn"])
def simple_rnn() -> keras.Model:
    return _sequential((4, 3), L.SimpleRNN(4), L.Dense(2))


@_zoo(tags=["rnn"])
def bidirectional() -> keras.Model:
    return _sequential((4, 3), L.Bidirectional(L.LSTM(3)), L.Dense(2))


@_zoo(tags=["rnn"])
def conv_lstm() -> keras.Model:
    return _sequential((3, 4, 4, 1), L.ConvLSTM2D(2, 2), L.Flatten(), L.Dense(2))


@_zoo(tags=["rnn"])
def masked_rnn() -> keras.Model:
    return _sequential((5,), L.Embedding(VOCABULARY, 3, mask_zero=True), L.LSTM(3), L.Dense(2), dtype="int32")


@_zoo(tags=["rnn"])
def stacked_rnn() -> keras.Model:
    return _sequential((4, 3), L.RNN([L.LSTMCell(3), L.GRUCell(2)]), L.Dense(2))


# ------------------------------------------------------------------------------------------------------- topologies


@_zoo()
def shared_layers() -> keras.Model:
    x = keras.Input((4,))
    shared = L.Dense(4, activation="tanh")
    return keras.Model(x, L.Dense(2)(shared(shared(x))))


@_zoo()
def nested() -> keras.Model:
    inner = keras.Sequential([keras.Input((4,)), L.Dense(5, activation="relu"), L.Dense(4)])
    x = keras.Input((4,))
    return keras.Model(x, L.Dense(2)(inner(inner(x))))


@_zoo()
def residual() -> keras.Model:
    x = keras.Input((5, 4, 3))
    y = L.BatchNormalization()(L.Conv2D(3, 3, padding="same", use_bias=False)(x))
    y = L.ReLU()(L.Add()([x, y]))
    return keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(y)))


@_zoo()
def list_inputs() -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((3,), dtype="int32", name="b")
    y = L.Concatenate()([L.Dense(3, activation="tanh")(a), L.Flatten()(L.Embedding(VOCABULARY, 2)(b))])
    return keras.Model([a, b], L.Dense(2)(y))


@_zoo(call=lambda model, inputs: model(dict(zip(["left", "right"], inputs, strict=True)), training=False))
def dict_inputs() -> keras.Model:
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    y = L.Multiply()([L.Dense(5, activation="tanh")(left), L.Dense(5)(right)])
    return keras.Model({"left": left, "right": right}, L.Dense(2)(y))


@_zoo(call=lambda model, inputs: model(inputs[0], training=False)["score"], options={"output": "score"})
def dict_outputs() -> keras.Model:
    x = keras.Input((4,))
    h = L.Dense(5, activation="relu")(x)
    return keras.Model(x, {"embedding": h, "score": L.Dense(2)(h), "unrelated": L.Dense(1)(x)})


@_zoo()
def spatial_output() -> keras.Model:
    return _sequential((4, 3, 2), L.Conv2D(3, 3, padding="same", activation="tanh"), L.Conv2D(2, 1))


@_zoo()
def frozen_layers() -> keras.Model:
    model = _sequential((5,), L.Dense(4, activation="tanh"), L.BatchNormalization(), L.Dense(2))
    model.layers[0].trainable = False
    return model


# ------------------------------------------------------------------------------------ other ways of giving a model


def _keras2_sequential(shape: tuple[int, ...], *layers: Any, dtype: str = "float32") -> Any:
    import tf_keras

    return tf_keras.Sequential([tf_keras.Input(shape, dtype=dtype), *layers])


@_zoo(tags=["keras2"])
def keras2_cnn() -> Any:
    from tf_keras import layers

    return _keras2_sequential(
        (6, 5, 2),
        layers.Conv2D(3, 3, activation="swish"),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(2),
        layers.LayerNormalization(),
        layers.Flatten(),
        layers.Dense(2),
    )


@_zoo(tags=["keras2", "rnn"])
def keras2_lstm() -> Any:
    from tf_keras import layers

    embedding_layer = layers.Embedding(VOCABULARY, 3, mask_zero=True)
    rnn = layers.Bidirectional(layers.LSTM(3))
    return _keras2_sequential((4,), embedding_layer, rnn, layers.Dense(2), dtype="int32")


@_zoo(tags=["keras2", "rnn"])
def keras2_gru() -> Any:
    from tf_keras import layers

    return _keras2_sequential((4, 3), layers.GRU(3, return_sequences=True), layers.SimpleRNN(2), layers.Dense(2))


class RecurrentModule(tf.Module):
    """A tf.Module with variables in a list, a frozen one, and a loop of its own: (batch, 4, 3) -> (batch, 2)."""

    def __init__(self) -> None:
        super().__init__(name="recurrent")
        rng = np.random.default_rng(0)
        self.layers = [
            {"w": tf.Variable(rng.normal(size=(3, 3)) / 2, dtype=tf.float32), "b": tf.Variable(tf.ones(3) / 4)},
            {"w": tf.Variable(rng.normal(size=(3, 2)), dtype=tf.float32)},
        ]
        self.scale = tf.Variable(0.7, trainable=False)

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 3), tf.float32)])
    def __call__(self, x):
        first = self.layers[0]
        state = tf.zeros_like(x[:, 0])
        for t in tf.range(4):
            state = tf.tanh((state + x[:, t]) @ first["w"] + first["b"])
        return self.scale * state @ self.layers[1]["w"]


@tf.function(input_signature=[
    {"hidden": {"w": tf.TensorSpec((4, 5)), "b": tf.TensorSpec((5,))}, "w": tf.TensorSpec((5, 2))},
    tf.TensorSpec((None, 4), name="x"),
])  # fmt: skip
def mlp_function(params, x):
    """A function of its parameters and inputs: (batch, 4) -> (batch, 2)."""
    return tf.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"]) @ params["w"]


def mlp_params() -> dict[str, Any]:
    """Parameters of `mlp_function`."""
    rng = np.random.default_rng(0)
    hidden = {"w": rng.normal(size=(4, 5)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}
    return {"hidden": hidden, "w": rng.normal(size=(5, 2)).astype(np.float32)}


ZOO.append(
    Entry("tf_module", RecurrentModule, lambda model, inputs: model(inputs[0]), tags=frozenset({"rnn", "module"}))
)
ZOO.append(
    Entry(
        "function_and_params",
        lambda: (mlp_function, mlp_params()),
        lambda model, inputs: model[0](model[1], inputs[0]),
        tags=frozenset({"module"}),
    )
)
