"""Frozen layers that are quantized to integers, beside trainable ones: their derivative is TensorFlow's."""

import jax
import jax.numpy as jnp
import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from cpu_engine import layerwise_kernel_fn

from exporter.errors import ExportError
from exporter.functionalize import functionalize
from exporter.ntk.neural_tangents_bridge import empirical_ntk_fn
from exporter.ntk.reference import reference_ntk

L = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras' `quantize`


def dense(mode="int8"):
    """Trainable variables before, in (its bias and LoRA) and after the quantized layer."""
    layer = L.Dense(6, activation="tanh")
    model = keras.Sequential([keras.Input((5,)), L.Dense(8, activation="tanh"), layer, L.Dense(2)])
    return quantized(model, [layer], mode)


def einsum_dense():
    layer = L.EinsumDense("abc,cd->abd", output_shape=(6, 5))
    return quantized(keras.Sequential([keras.Input((6, 4)), L.Dense(4), layer, L.Flatten(), L.Dense(2)]), [layer])


def embedding():
    layer = L.Embedding(models.VOCABULARY, 4)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layer, L.Flatten(), L.Dense(2)])
    return quantized(model, [layer])


def mixed():
    """A model whose quantized layer divides and multiplies in half precision."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return dense()
    finally:
        keras.config.set_dtype_policy("float32")


def quantized(model, layers, mode="int8"):
    models.randomize(model.variables)
    for layer in layers:
        layer.enable_lora(2)
        layer.quantize(mode)
    models.randomize(model.trainable_variables)
    return model


def tf_kernel(model, x):
    """The kernel as TensorFlow differentiates the model."""
    with tf.GradientTape() as tape:
        y = model(x, training=False)
    jacobians = tape.jacobian(y, [v.value for v in model.trainable_variables])
    rows = np.concatenate([np.reshape(j, (*y.shape, -1)) for j in jacobians], -1).astype(np.float64)
    return np.einsum("nop,mop->nm", rows, rows) / y.shape[1]


def difference(a, b):
    return np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b))


@pytest.mark.parametrize("builder", [dense, einsum_dense, embedding])
def test_kernel_is_that_of_tensorflows_derivative(builder):
    model = builder()
    functional = functionalize(model)
    assert {path.rpartition("/")[2] for path in functional.frozen} <= {
        "kernel",
        "kernel_scale",
        "embeddings",
        "embeddings_scale",
    }
    assert sum("lora" in path for path in functional.trainable) == 2
    x = models.random_inputs(functional.inputs, 4)
    reference = reference_ntk(functional.apply_fn, functional.trainable, functional.frozen, x)
    assert difference(tf_kernel(model, x[0]), reference) < 1e-5
    layerwise = jax.jit(layerwise_kernel_fn(functional.apply_fn, trace_axes=(1,), diagonal_axes=()))
    assert difference(layerwise(functional.trainable, functional.frozen, x), reference) < 1e-5
    outputs = jax.jit(functional.apply_fn)(functional.trainable, functional.frozen, x)
    assert difference(outputs, functional.original(x)) < 1e-5


def test_derivatives_of_other_implementations():
    functional = functionalize(dense())
    x = models.random_inputs(functional.inputs, 4)
    reference = reference_ntk(functional.apply_fn, functional.trainable, functional.frozen, x)
    ntk_fn = jax.jit(
        empirical_ntk_fn(
            lambda params, x: functional.apply_fn(params, functional.frozen, x),
            vmap_axes=0,
            implementation="structured_derivatives",
        )
    )
    params = {path: jnp.asarray(value) for path, value in functional.trainable.items()}
    assert difference(ntk_fn(x, None, params), reference) < 1e-5


def test_weights_of_four_bits():
    model = dense("int4")
    functional = functionalize(model)
    x = models.random_inputs(functional.inputs, 4)
    reference = reference_ntk(functional.apply_fn, functional.trainable, functional.frozen, x)
    assert difference(tf_kernel(model, x[0]), reference) < 1e-5


def test_quantized_within_half_precision():
    functional = functionalize(mixed(), keep_half=True)
    x = models.random_inputs(functional.inputs, 4)
    outputs = jax.jit(functional.apply_fn)(functional.trainable, functional.frozen, x)
    assert difference(outputs, functional.original(x)) < 2**-6
    functionalize(mixed())


def test_quantized_variables_have_no_kernel():
    model = dense()
    path = next(v.path for v in model.variables if v.dtype == "int8")
    with pytest.raises(ExportError, match=f"'{path}' matches none"):
        functionalize(model, trainable=[path])


def test_saved_model_does_not_hold_the_gradient(tmp_path):
    dense().export(str(tmp_path), verbose=False)
    with pytest.raises(ExportError, match="overrides"):
        functionalize(tf.saved_model.load(str(tmp_path)))
