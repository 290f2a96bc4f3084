"""Sizes for the axes that models leave open: the model at these sizes, or one message."""

import jax
import keras
import models
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from exporter.errors import ExportError
from exporter.functionalize import functionalize
from exporter.functionalize.tracing import trace
from exporter.load import load_model

L = keras.layers
VOCABULARY = 7


def tokens_of_any_length(layers=L, backend=keras):
    """Masked tokens of any length into a recurrent layer of both directions."""
    tokens = backend.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, 3, mask_zero=True)(tokens)
    x = layers.Bidirectional(layers.LSTM(2))(x)
    model = backend.Model(tokens, layers.Dense(2)(x), name="text")
    models.randomize(model.variables)
    return model


def image_of_any_size():
    """The beginning of keras.applications with an input of (None, None, 3)."""
    model = keras.Sequential(
        [
            keras.Input((None, None, 3), name="image"),
            L.Conv2D(4, 3, strides=2, activation="relu"),
            L.BatchNormalization(),
            L.MaxPooling2D(2),
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ],
        name="picture",
    )
    models.randomize(model.variables)
    return model


def several_inputs():
    """Two open inputs, of one and two open axes, and a closed one between them."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    weight = keras.Input((3,), name="weight")
    image = keras.Input((None, None, 2), name="image")
    parts = [
        L.GlobalAveragePooling1D()(L.Embedding(VOCABULARY, 3)(tokens)),
        weight,
        L.GlobalMaxPooling2D()(L.Conv2D(3, 2)(image)),
    ]
    model = keras.Model([tokens, weight, image], L.Dense(2)(L.Concatenate()(parts)), name="both")
    models.randomize(model.variables)
    return model


class Subclassed(keras.Model):
    """A model that was built for any length."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.hidden, self.head = L.Dense(3, activation="tanh"), L.Dense(2)
        self.build((None, None, 2))

    def build(self, shape):
        self.hidden.build(shape)
        self.head.build((None, 3))

    def call(self, x):
        return self.head(keras.ops.mean(self.hidden(x), axis=1))


class Averaging(tf.Module):
    """A function whose signature leaves the length open."""

    def __init__(self):
        super().__init__(name="averaging")
        self.w = tf.Variable(np.random.default_rng(0).normal(size=(2, 2)), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None, None, 2), name="x")])
    def __call__(self, x):
        return tf.tanh(tf.reduce_mean(x, 1) @ self.w)


class SaysItsShape(tf.Module):
    """A module that is traced by its attribute."""

    input_shape = (None, None, 2)

    def __init__(self):
        super().__init__(name="says_its_shape")
        self.w = tf.Variable(np.random.default_rng(0).normal(size=(2, 2)), dtype=tf.float32)

    def __call__(self, x):
        return tf.tanh(tf.reduce_mean(x, 1) @ self.w)


def inputs_of(functional, n=3):
    """Random examples; of tokens some end in zeros, which masks hide."""
    inputs = models.random_inputs(functional.inputs, n)
    for x in inputs:
        if x.dtype == np.int32:
            x[0, -2:], x[1, 1:], x[2] = 0, 0, 1 + x[2]
    return inputs


def output_of(functional, inputs):
    return jax.jit(functional.apply_fn)(functional.trainable, functional.frozen, inputs)


def call(model, inputs):
    value = inputs[0] if len(inputs) == 1 else list(inputs)
    return model(value, training=False) if isinstance(model, keras.Model | tf_keras.Model) else model(value)


def gradients(functional, inputs, cotangent):
    def total(trainable):
        return jax.numpy.vdot(functional.apply_fn(trainable, functional.frozen, inputs), cotangent)

    return jax.jit(jax.grad(total))(dict(functional.trainable))


def own_gradients(model, variables, inputs, cotangent):
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(call(model, inputs) * cotangent)
    gradients = tape.gradient(total, {v.path: v.variable for v in variables if v.trainable})
    return {path: tf.convert_to_tensor(gradient) for path, gradient in gradients.items()}


MODELS = {
    "tokens": (tokens_of_any_length, {"tokens": (5,)}, [(None, 5)]),
    "Keras 2": (lambda: tokens_of_any_length(tf_keras.layers, tf_keras), (5,), [(None, 5)]),
    "image": (image_of_any_size, (9, 8), [(None, 9, 8, 3)]),
    "several": (several_inputs, {"image": (3, 4), "tokens": (5,)}, [(None, 5), (None, 3), (None, 3, 4, 2)]),
    "subclassed": (Subclassed, (4,), [(None, 4, 2)]),
    "function": (Averaging, (4,), [(None, 4, 2)]),
    "attribute": (SaysItsShape, (4,), [(None, 4, 2)]),
}


@pytest.mark.parametrize("case", MODELS)
def test_is_the_model_at_these_sizes(case):
    build, shapes, expected = MODELS[case]
    model = build()
    functional = functionalize(model, input_shapes=shapes)
    assert [spec.shape for spec in functional.inputs] == expected
    inputs = inputs_of(functional)
    np.testing.assert_allclose(output_of(functional, inputs), call(model, inputs), atol=1e-6)
    if hasattr(model, "layers"):
        cotangent = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
        expected = own_gradients(model, trace(model, shapes).variables, inputs, cotangent)
        for path, gradient in gradients(functional, inputs, cotangent).items():
            np.testing.assert_allclose(gradient, expected[path], atol=1e-5, err_msg=path)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("kind", ["m.keras", "m.h5", "exported", "saved"])
def test_models_from_disk(tmp_path, kind):
    model, path = image_of_any_size(), str(tmp_path / kind)
    if kind == "exported":
        model.export(path, verbose=False)
    elif kind == "saved":
        tf.saved_model.save(model, path)
    else:
        model.save(path)
    functional = functionalize(load_model(path), input_shapes=[9, 8])
    inputs = inputs_of(functional)
    np.testing.assert_allclose(output_of(functional, inputs), call(model, inputs), atol=1e-6)


ASKED = "Expected the inputs of 'both' to have known sizes but for the batch axis, received "


@pytest.mark.parametrize(
    ("build", "shapes", "message"),
    [
        (
            tokens_of_any_length,
            None,
            "Expected the inputs of 'text' to have known sizes but for the batch axis, received 'tokens' of shape "
            "(None, None); set export.input_shapes to the sizes of the open axes, for instance export.input_shapes: "
            "[32], or build the model with known sizes.",
        ),
        (
            several_inputs,
            None,
            f"{ASKED}'tokens' of shape (None, None), 'image' of shape (None, None, None, 2); set export.input_shapes "
            "to the sizes of the open axes, for instance export.input_shapes: {tokens: [32], image: [32, 32]}, or "
            "build the model with known sizes.",
        ),
        (
            several_inputs,
            {"tokens": (5,)},
            f"{ASKED}'image' of shape (None, None, None, 2); set export.input_shapes to the sizes of the open axes, "
            "for instance export.input_shapes: {tokens: [5], image: [32, 32]}, or build the model with known sizes.",
        ),
        (
            several_inputs,
            (5,),
            "export.input_shapes: expected sizes by the names of inputs, since 'both' has 3 (tokens, weight, image), "
            "received [5]; write them by name, for instance export.input_shapes: {tokens: [5], image: [32, 32]}.",
        ),
        (
            several_inputs,
            {"token": (5,), "x": (1,), "weight": (3,), "image": (4,)},
            "export.input_shapes: expected names of inputs of 'both' (tokens, weight, image), received 'token' "
            "(did you mean 'tokens'?), 'x'; input 'weight' of shape (None, 3) has no open axis but the batch axis, "
            "received [3] for it; leave it out, or build the model with None there; expected 2 sizes, one for each "
            "open axis of input 'image' of shape (None, None, None, 2) but the batch axis, received [4].",
        ),
        (
            tokens_of_any_length,
            (5, 6),
            "export.input_shapes: expected 1 size, one for each open axis of input 'tokens' of shape (None, None) but "
            "the batch axis, received [5, 6].",
        ),
        (
            lambda: keras.Sequential([keras.Input((6,), name="x"), L.Dense(2)]),
            (6,),
            "export.input_shapes: input 'x' of shape (None, 6) has no open axis but the batch axis, received "
            "[6] for it; leave it out, or build the model with None there.",
        ),
        (
            image_of_any_size,
            (4, 9),
            "'picture' cannot be called in inference mode on inputs image: float32[?, 4, 9, 3]: Exception encountered "
            "when calling MaxPooling2D.call(). Negative dimension size caused by subtracting 2 from 1; it takes "
            "other sizes only (export.input_shapes)",
        ),
    ],
)
def test_what_does_not_fit_is_one_message(build, shapes, message):
    with pytest.raises(ExportError) as error:
        functionalize(build(), input_shapes=shapes)
    assert str(error.value) == message


def test_unknown_rank_stays_refused():
    function = tf.function(lambda x: tf.reduce_mean(x, 1), input_signature=[tf.TensorSpec(None, name="x")])
    with pytest.raises(ExportError, match="must have a batch axis and a known rank, received shape <unknown>"):
        functionalize(function, input_shapes=[3])
