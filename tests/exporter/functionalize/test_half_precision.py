"""Models of half precision as functions: without its rounding, or with it as TensorFlow has it."""

import jax
import jax.numpy as jnp
import keras
import models
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from cpu_engine import layerwise_kernel_fn

from exporter.functionalize import functionalize
from exporter.functionalize.tf_ops import GraphFunction, Library
from exporter.ntk.reference import reference_ntk

L = keras.layers


def cnn():
    """The normalization and, as Keras' guide has it, the last layer are computed in float32."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            L.Conv2D(4, 3, activation="relu"),
            L.BatchNormalization(),
            L.AveragePooling2D(2),
            L.Flatten(),
            L.Dense(3, dtype="float32"),
        ]
    )


def attention():
    tokens = keras.Input((6,), dtype="int32")
    x = L.Embedding(models.VOCABULARY, 4, mask_zero=True)(tokens)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True))
    return keras.Model(tokens, L.Dense(3, activation="softmax")(L.GlobalAveragePooling1D()(x)))


def lstm():
    return keras.Sequential([keras.Input((4, 2)), L.LSTM(3), L.Dense(4, activation="gelu"), L.Dense(2)])


def keras2():
    """Whose normalization of examples is a batch normalization with scales of float32."""
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            tf_keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def with_policy(policy, builder):
    """The builder's model under a policy, with random variables that are the same under all."""
    keras.config.set_dtype_policy(policy)
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        model = builder()
    finally:
        keras.config.set_dtype_policy("float32")
        tf_keras.mixed_precision.set_global_policy("float32")
    models.randomize(model.variables)
    return model


def kernel(functional, x):
    return reference_ntk(functional.apply_fn, functional.trainable, functional.frozen, x)


def layerwise_kernel(functional, x):
    kernel = layerwise_kernel_fn(functional.apply_fn, trace_axes=(1,), diagonal_axes=())
    return jax.jit(kernel)(functional.trainable, functional.frozen, x)


def difference(a, b):
    return np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b))


@pytest.mark.parametrize(
    ("builder", "policy"),
    [(attention, "mixed_bfloat16"), (lstm, "mixed_float16"), (keras2, "mixed_bfloat16")],
)
def test_mixed_precision_without_rounding_is_the_model_in_float32(builder, policy):
    functional, plain = (functionalize(with_policy(p, builder)) for p in (policy, "float32"))
    assert functional.half == np.dtype(policy.removeprefix("mixed_"))
    assert plain.half is None
    x = models.random_inputs(plain.inputs, 3)
    np.testing.assert_allclose(kernel(functional, x), kernel(plain, x), rtol=1e-12)


@pytest.mark.parametrize(("builder", "dtype"), [(attention, "float16"), (keras2, "bfloat16")])
def test_half_precision_throughout_comes_and_goes_as_float32(builder, dtype):
    functional = functionalize(with_policy(dtype, builder))
    specs = [*functional.inputs, functional.output, *functional.outputs]
    arrays = [*functional.trainable.values(), *functional.frozen.values()]
    assert {str(a.dtype) for a in (*specs, *arrays)} <= {"float32", "int32"}
    x = models.random_inputs(functional.inputs, 3)
    computed = layerwise_kernel(functional, x)
    assert difference(computed, kernel(functional, x)) < 2e-6
    outputs = jax.jit(functional.apply_fn)(functional.trainable, functional.frozen, x)
    assert difference(functional.original(x), outputs) < 16 * float(jnp.finfo(functional.half).eps)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "float64"])
def test_a_layer_of_another_type(dtype):
    def model(of_one):
        of_one = L.Dense(5, activation="tanh", dtype=of_one)
        return keras.Sequential([keras.Input((4,)), L.Dense(6, activation="relu"), of_one, L.Dense(2)])

    plain, mixed = model("float32"), model(dtype)
    models.randomize(plain.variables)
    values = [w.astype(jnp.bfloat16).astype(np.float16) for w in plain.get_weights()]  # that all types hold
    plain.set_weights(values)
    mixed.set_weights(values)
    plain, mixed = functionalize(plain), functionalize(mixed)
    x = models.random_inputs(plain.inputs, 3)
    np.testing.assert_allclose(kernel(mixed, x), kernel(plain, x), rtol=1e-12)


@pytest.mark.parametrize(
    ("builder", "policy"), [(cnn, "mixed_float16"), (attention, "mixed_bfloat16"), (keras2, "bfloat16")]
)
def test_half_precision_that_is_kept_rounds_as_tensorflow_does(builder, policy):
    model = with_policy(policy, builder)
    functional, exact = functionalize(model, keep_half=True), functionalize(model)
    eps = float(jnp.finfo(functional.half).eps)
    x = models.random_inputs(functional.inputs, 8)
    original = functional.original(x)
    rounded, unrounded = (jax.jit(f.apply_fn)(f.trainable, f.frozen, x) for f in (functional, exact))
    assert difference(rounded, original) < min(2 * eps, difference(unrounded, original) + eps / 2)
    expected = kernel(functional, x)
    np.testing.assert_allclose(expected, kernel(exact, x), rtol=1e-12)  # float64 has no rounding in either
    computed = layerwise_kernel(functional, x)
    assert computed.dtype == np.float32
    assert 1e-6 < difference(computed, expected) < 8 * eps


def test_products_of_half_precision_add_up_in_float32():
    """In bfloat16 a sum of so many ones would stay at 256."""
    model = keras.Sequential([keras.Input((1000,)), L.Dense(1, dtype="mixed_bfloat16")])
    functional = functionalize(model, keep_half=True)
    x = (np.ones((1, 1000), np.float32),)
    computed = layerwise_kernel(functional, x)
    np.testing.assert_array_equal(computed, [[1001.0]])


def nodes_in_half(x):
    half = tf.cast(x, tf.float16)
    third = tf.constant(1 / 3, tf.float16)
    return tf.cast(half, tf.float32), tf.cast(tf.concat([half, half], 0), tf.float32), half * third


@pytest.mark.parametrize("keep_half", [False, True])
def test_graphs(keep_half):
    concrete = tf.function(nodes_in_half).get_concrete_function(tf.TensorSpec([None], tf.float32))
    library = Library(concrete.graph.as_graph_def().library.function, keep_half=keep_half)
    x = np.asarray([0.1, 1e4], np.float32)
    half = x.astype(np.float16).astype(np.float32) if keep_half else x
    cast, joined, product = GraphFunction(concrete.function_def, library)(jnp.asarray(x))
    np.testing.assert_array_equal(cast, half)
    np.testing.assert_array_equal(joined, np.concatenate([half, half]))
    assert product.dtype == (np.float16 if keep_half else np.float32)
    if not keep_half:  # a constant keeps its value
        np.testing.assert_array_equal(product, x * np.float32(np.float16(1 / 3)))


def test_gradients_are_compared_within_half_precision():
    @tf.custom_gradient
    def square(x):
        return x * x, lambda dy: 2 * x * dy

    def network():
        layers = (L.Dense(32, "tanh"), L.Lambda(square), L.Dense(32, "tanh"), L.Dense(2))
        return keras.Sequential([keras.Input((16,)), *layers])

    assert functionalize(with_policy("mixed_bfloat16", network)).half == jnp.bfloat16
