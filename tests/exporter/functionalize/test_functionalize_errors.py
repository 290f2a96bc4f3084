"""Models that cannot be made functions, and what is said of them."""

import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import ExportError
from exporter.functionalize import functionalize

L = keras.layers


def _sequential(*layers, shape=(4,), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers], name="model")


def _raises(message, model, **options):
    with pytest.raises(ExportError, match=message):
        functionalize(model, **options)


@pytest.mark.parametrize("model", [3, lambda x: x, "model.keras", None])
def test_not_a_model(model):
    _raises("Expected a Keras model, a tf.Module, a tf.function, a pair .* received ", model)


def test_several_outputs_need_a_choice():
    model = models.by_id("dict_outputs").build()
    _raises(r"has 3 outputs; choose one with `output`.*score: float32\[\?, 2\]", model)
    _raises("Expected `output` to be the name or the index of an output .* received 'scores'", model, output="scores")
    _raises("received 3", model, output=3)


def test_output_that_cannot_have_a_kernel():
    _raises("to be floating, received int32", _sequential(L.Dense(2), L.Lambda(lambda x: tf.argmax(x, -1, tf.int32))))
    _raises(r"batch on axis 0, received shape \(\)", _sequential(L.Dense(2), L.Lambda(tf.reduce_mean)))
    _raises(r"batch on axis 0, received shape \(2, 13\)", _sequential(L.Dense(2), L.Lambda(tf.transpose)))


def test_patterns_that_leave_nothing():
    model = models.by_id("mlp").build()
    path = f"{model.layers[0].name}/kernel"
    _raises("'kernal' matches none .nearest path: .*kernel", model, trainable=["kernal"])
    _raises(f"The trainable variables are '{path}'", model, trainable=["nothing/*"])
    _raises("at least one variable, received .'!\\*'.", model, trainable=["!*"])


def test_nothing_trainable():
    model = _sequential(L.Dense(2))
    model.trainable = False
    _raises("Expected 'model' to have trainable variables, received a model of 2 variables with none", model)


def test_output_without_the_chosen_variables():
    model = models.by_id("dict_outputs").build()
    paths = [f"{layer.name}/kernel" for layer in model.layers if hasattr(layer, "kernel")]
    _raises("Output 'embedding' .* its kernel is zero", model, output="embedding", trainable=paths[1:])


def test_weights_that_are_not_finite():
    model = _sequential(L.Dense(2, name="diverged"))
    model.layers[0].bias.assign([0.0, np.nan])
    _raises("received NaN or infinity in variable 'diverged/bias'", model)


def test_inputs_that_cannot_be_served():
    sparse = keras.Input((4,), sparse=True, name="bag")
    _raises("Input 'bag' .* dense tensor, received a SparseTensor", keras.Model(sparse, L.Dense(2)(sparse)))
    ragged_function = tf.function(lambda x: x.to_tensor(), input_signature=[tf.RaggedTensorSpec((None, None))])
    _raises("dense tensor, received a RaggedTensor", ragged_function)


def test_function_without_a_signature():
    @tf.function
    def double(x):
        return 2 * x

    _raises("'double' to have one input signature, received none; decorate it", double)
    double(tf.ones((2, 3)))
    double(tf.ones((2, 4)))
    _raises("'double' to have one input signature, received 2: ", double)


def test_module_without_a_signature():
    class Silent(tf.Module):
        def __call__(self, x):
            return x

    _raises("Expected 'silent' to say what its inputs are, .* `input_shape`", Silent())


def test_model_that_fails():
    built = False

    def fail(x):
        if built:
            raise ValueError("not today")
        return x

    model = _sequential(L.Dense(2), L.Lambda(fail))
    built = True
    _raises("(?s)'model' cannot be called in inference mode on inputs .*not today", model)


def test_operations_that_cannot_be_converted_are_named_with_their_layers():
    def hashed(x):
        return tf.strings.to_hash_bucket_fast(tf.strings.as_string(x), 4)

    model = _sequential(L.Dense(2), L.Lambda(hashed, name="hashed"), L.Embedding(4, 2))
    _raises(r"(?s)received AsString \(in model.*/hashed.*; StringToHashBucketFast \(in .*hashed.*preprocessing", model)


def test_random_outputs():
    model = _sequential(L.Dense(2), L.Lambda(lambda x: x + tf.random.normal(tf.shape(x)), name="sample"))
    _raises("random operations: RandomStandardNormal .in .*sample", model)


def test_variable_that_changes_during_the_call():
    class Counter(L.Layer):
        def build(self, _):
            self.calls = self.add_weight(shape=(), trainable=False, name="calls")

        def call(self, x):
            self.calls.assign_add(1.0)
            return x * self.calls

    _raises("layers that assign to a variable and then read it: .*counter", _sequential(L.Dense(2), Counter()))


def test_state_of_a_fixed_batch_size():
    model = keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), L.LSTM(2, stateful=True, name="memory")])
    _raises("operation of layer '.*memory.* cannot be converted", model)


def test_gradient_that_is_not_that_of_the_forward_pass():
    @tf.custom_gradient
    def straight_through(x):
        return tf.round(x), lambda dy: dy

    @tf.custom_gradient
    def square(x):
        return x * x, lambda dy: 2 * x * dy

    _raises(
        "gradients that 'model' overrides .*in .*quantise",
        _sequential(L.Dense(2), L.Lambda(straight_through, name="quantise")),
    )
    assert functionalize(_sequential(L.Dense(2), L.Lambda(square))).trainable
    resized = _sequential(L.Conv2D(2, 1), L.Lambda(square), L.Resizing(2, 2, interpolation="area"), shape=(4, 4, 1))
    _raises("cannot be told, since TensorFlow cannot differentiate it: .*ResizeArea", resized)


def test_loop_whose_length_depends_on_data():
    def grow(x):
        return tf.while_loop(lambda y: tf.reduce_sum(y) < 10.0, lambda y: (y * y + 1.0,), (x,))[0]

    _raises(
        "no reverse-mode derivative: .*until_large.*/while", _sequential(L.Dense(2), L.Lambda(grow, name="until_large"))
    )


def _hashed(x):
    return tf.cast(tf.cast(x, tf.int64) * 1_000_003 % 11, tf.float32)


def _shifted(x):
    return tf.cast(tf.cast(x, tf.int64) + (1 << 40), tf.float32)


def test_integers_that_may_not_fit_32_bits():
    _raises("Mul operation .* multiplies 64-bit integers", _sequential(L.Lambda(_hashed), L.Dense(2), dtype="int32"))
    _raises("AddV2 operation .* integer beyond 32 bits", _sequential(L.Lambda(_shifted), L.Dense(2), dtype="int32"))


def test_64_bit_integers_that_fit():
    functionalize(_sequential(L.Lambda(lambda x: tf.cast(x + 1, tf.float32)), L.Dense(2), dtype="int64"))


def test_a_function_called_by_its_name_is_an_operation_that_cannot_be_converted():
    class Ctc(L.Layer):
        def call(self, h):
            n = tf.shape(h)[0]
            labels, lengths = tf.ones((n, 2), tf.int32), (tf.fill([n], 2), tf.fill([n], 6))
            return keras.ops.ctc_loss(labels, h, *lengths)[:, None]

    _raises("operations that can be converted to JAX, received", _sequential(L.Dense(4), Ctc(), shape=(6, 3)))
