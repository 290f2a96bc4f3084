"""The functionalize stage: derivatives, inputs and outputs, and each way of giving a model. See also test_zoo."""

import importlib

import jax
import jax.numpy as jnp
import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from exporter.compat.jax_names import enable_x64
from exporter.errors import ExportError
from exporter.functionalize import TensorSpec, functionalize
from exporter.functionalize.tracing import trace

L = keras.layers


def _relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)


def _widen(values):
    return jax.tree.map(lambda v: v.astype(np.float64) if np.issubdtype(v.dtype, np.floating) else v, values)


# ------------------------------------------------------------------------------------------------ the function itself


@pytest.fixture(params=["activations", "conv2d", "attention", "masked_rnn", "keras2_cnn", "tf_module"], scope="module")
def functional_of_each_kind(request):
    return functionalize(models.by_id(request.param).build())


def test_jacobian_of_single_examples_in_float64(functional_of_each_kind):
    functional = functional_of_each_kind
    inputs = models.random_inputs(functional.inputs, 2)
    args = _widen((dict(functional.trainable), dict(functional.frozen), inputs))

    def single(trainable, frozen, example):
        return functional.apply_fn(trainable, frozen, jax.tree.map(lambda x: x[None], example))[0]

    with enable_x64():
        batched = jax.jit(jax.jacrev(functional.apply_fn))(*args)
        rows = jax.jit(jax.vmap(jax.jacrev(single), (None, None, 0)))(*args)
    scale = max(np.abs(value).max() for value in batched.values())
    for path, value in batched.items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, rows[path], atol=1e-12 * scale, err_msg=path)


def test_runs_on_no_examples(functional_of_each_kind):
    functional = functional_of_each_kind
    nothing = models.random_inputs(functional.inputs, 0)
    output = jax.jit(functional.apply_fn)(functional.trainable, functional.frozen, nothing)
    assert output.shape == (0, *functional.output.shape[1:])


def test_forward_mode_derivative(functional_of_each_kind):
    """Some kernels are computed with Jacobian-vector products, which custom VJPs would not have."""
    functional = functional_of_each_kind
    inputs = models.random_inputs(functional.inputs, 2)
    params = dict(functional.trainable)
    rng = np.random.default_rng(1)
    tangent = {path: rng.normal(size=value.shape).astype(value.dtype) for path, value in params.items()}

    def apply(p):
        return functional.apply_fn(p, functional.frozen, inputs)

    output, forward = jax.jit(lambda p, t: jax.jvp(apply, (p,), (t,)))(params, tangent)
    cotangent = rng.normal(size=output.shape).astype(output.dtype)
    reverse = jax.jit(lambda p: jax.vjp(apply, p)[1](cotangent)[0])(params)
    products = [np.vdot(reverse[path], tangent[path]) for path in params]
    np.testing.assert_allclose(np.vdot(forward, cotangent), np.sum(products), rtol=1e-3, atol=1e-3)


GRADIENT_TAPE = (
    *("activations", "conv1d_transpose", "attention", "residual", "keras2_cnn", "tf_module"),
    *("bidirectional", "conv_lstm", "masked_rnn", "stacked_rnn", "keras2_gru"),  # each layer and cell of loops
)


@pytest.mark.parametrize("model_id", GRADIENT_TAPE)
def test_gradient_equals_gradient_tape(model_id):
    """Of a random combination of the outputs: none is left out, and no two are exchanged."""
    entry = models.by_id(model_id)
    model = entry.build()
    functional = functionalize(model, **entry.options)
    inputs = models.random_inputs(functional.inputs, 2)
    variables = {v.path: v.variable for v in trace(model).variables if v.path in functional.trainable}
    with tf.GradientTape() as tape:
        output = entry.call(model, inputs)
    cotangent = np.random.default_rng(1).normal(size=output.shape).astype(np.float32)
    expected = tape.gradient(output, variables, cotangent, unconnected_gradients="zero")
    gradient = jax.jit(jax.grad(lambda p: jnp.vdot(functional.apply_fn(p, functional.frozen, inputs), cotangent)))(
        dict(functional.trainable)
    )
    assert len(gradient) == len(variables) == len(model.trainable_variables)
    scale = max(np.abs(value).max() for value in gradient.values())
    for path, value in gradient.items():
        np.testing.assert_allclose(tf.convert_to_tensor(expected[path]), value, atol=2e-5 * scale, err_msg=path)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "elu", "selu", "softplus", "hard_sigmoid"])
def test_gradient_at_zero_is_tensorflows(activation):
    """Zero inputs and zero biases hit the kinks exactly."""
    model = keras.Sequential([keras.Input((3,)), L.Dense(2), L.Activation(activation)])
    functional = functionalize(model)
    inputs = (np.zeros((1, 3), np.float32),)
    gradient = jax.grad(lambda p: functional.apply_fn(p, functional.frozen, inputs).sum())(dict(functional.trainable))
    with tf.GradientTape() as tape:
        output = tf.reduce_sum(model(inputs[0]))
    bias = model.layers[0].bias
    np.testing.assert_allclose(gradient[f"{model.layers[0].name}/bias"], tape.gradient(output, bias.value), rtol=1e-6)


def test_convolutions_stay_single_equations():
    functional = functionalize(models.by_id("grouped_conv").build())
    inputs = models.random_inputs(functional.inputs, 2)
    equations = jax.make_jaxpr(functional.apply_fn)(dict(functional.trainable), {}, inputs).eqns
    convolutions = [e for e in equations if e.primitive.name == "conv_general_dilated"]
    assert [e.params["feature_group_count"] for e in convolutions] == [2]


def test_jax_and_tf2jax_are_left_as_they_were():
    import tf2jax
    from tf2jax._src import config, ops

    table, settings = dict(ops._jax_ops), config.copy_config()
    functionalize(models.by_id("conv3d").build())
    assert table == ops._jax_ops
    assert settings == config.copy_config()
    assert tf2jax.get_config("convert_custom_gradient")
    assert jnp.zeros(()).dtype == jnp.float32


# ---------------------------------------------------------------------------------------------- inputs and outputs


def test_specs_of_inputs_and_outputs():
    functional = functionalize(models.by_id("dict_outputs").build(), output="score")
    assert functional.inputs[0].shape == (None, 4)
    assert functional.inputs[0].dtype == "float32"
    assert functional.output == TensorSpec("score", (None, 2), "float32")
    assert [spec.name for spec in functional.outputs] == ["embedding", "score", "unrelated"]
    assert str(functional.output) == "score: float32[?, 2]"


@pytest.mark.parametrize(("model_id", "names"), [("list_inputs", ["a", "b"]), ("dict_inputs", ["left", "right"])])
def test_inputs_have_the_models_names(model_id, names):
    assert [spec.name for spec in functionalize(models.by_id(model_id).build()).inputs] == names


def test_output_by_index_and_what_does_not_influence_it():
    functional = functionalize(models.by_id("dict_outputs").build(), output=0)
    assert functional.output.name == "embedding"
    assert sorted(path.rpartition("/")[2] for path in functional.trainable) == ["bias", "kernel"]
    assert not functional.frozen


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_subclassed_model(library):
    library = pytest.importorskip(library)

    class TwoHeads(library.Model):
        def __init__(self):
            super().__init__(name="two_heads")
            self.head = library.layers.Dense(2)

        def call(self, x):
            return {"mean": self.head(x), "deviation": tf.nn.softplus(self.head(x))}

    model = TwoHeads()
    with pytest.raises(ExportError, match="Expected a built model, received 'two_heads'"):
        functionalize(model)
    x = np.ones((2, 3), np.float32)
    model(x)
    functional = functionalize(model, output="deviation")
    assert len(functional.trainable) == 2
    output = functional.apply_fn(functional.trainable, functional.frozen, (x,))
    assert _relative_error(output, model(x)["deviation"]) < 1e-5


def test_model_of_several_positional_inputs():
    class Distance(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def build(self, left_shape, right_shape):
            self.dense.build(left_shape)

        def call(self, left, right):
            return self.dense(left) - self.dense(right)

    model = Distance()
    left, right = models.random_inputs([TensorSpec("x", (None, 3), "float32")] * 2, 2)
    model(left, right)
    functional = functionalize(model)
    assert [spec.name for spec in functional.inputs] == ["left", "right"]
    output = functional.apply_fn(functional.trainable, functional.frozen, (left, right))
    assert _relative_error(output, model(left, right)) < 1e-5


def test_model_of_inputs_that_keras_did_not_record():
    class Sum(keras.Model):
        def call(self, left, right):
            return left + right

    model = Sum(name="sum")
    model(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    expected = "Keras to have recorded the shapes of the inputs left, right of 'sum', received only input"
    with pytest.raises(ExportError, match=expected):
        functionalize(model)


# ------------------------------------------------------------------------------------------------- kinds of models


def test_saved_model_of_a_module(tmp_path):
    module = models.RecurrentModule()
    tf.saved_model.save(module, str(tmp_path))
    functional = functionalize(tf.saved_model.load(str(tmp_path)))
    assert sorted(functional.trainable) == ["layers/0/b", "layers/0/w", "layers/1/w"]
    assert list(functional.frozen) == ["scale"]
    inputs = models.random_inputs(functional.inputs, 2)
    assert _relative_error(functional.apply_fn(functional.trainable, functional.frozen, inputs), module(*inputs)) < 1e-5


@pytest.mark.parametrize(
    ("model_id", "method"), [("batch_norm", "export"), ("keras2_cnn", "save"), ("keras2_cnn", "export")]
)
def test_saved_model_of_keras(tmp_path, model_id, method):
    entry = models.by_id(model_id)
    model = entry.build()
    model.layers[-1].trainable = False
    if method == "save":
        model.save(str(tmp_path), save_format="tf")
    else:
        model.export(str(tmp_path))
    expected = functionalize(model)
    functional = functionalize(tf.saved_model.load(str(tmp_path)))
    scope = f"{model.name}/"  # as Keras had the paths in memory, when it was saved
    assert [path.removeprefix(scope) for path in functional.trainable] == list(expected.trainable)
    assert sorted(path.removeprefix(scope) for path in functional.frozen) == sorted(expected.frozen)
    inputs = models.random_inputs(functional.inputs, 3)
    output = functional.apply_fn(functional.trainable, functional.frozen, inputs)
    assert _relative_error(output, entry.call(model, inputs)) < 1e-5


def test_module_that_only_gives_its_input_shape():
    class Scale(tf.Module):
        input_shape = (None, 3)

        def __init__(self):
            super().__init__()
            self.scale = tf.Variable([1.0, 2.0, 3.0])

        def __call__(self, x):
            return x * self.scale

    functional = functionalize(Scale())
    assert functional.inputs == (TensorSpec("x", (None, 3), "float32"),)
    assert list(functional.trainable) == ["scale"]


def test_function_with_captured_variables_of_the_same_name():
    first, second = (tf.Variable(value, name="w") for value in (2.0, 3.0))

    @tf.function(input_signature=[tf.TensorSpec((None, 2), name="features")])
    def polynomial(x):
        return first * x + second * x**2

    functional = functionalize(polynomial)
    assert functional.name == "polynomial"
    assert functional.inputs[0].name == "features"
    x = np.ones((1, 2), np.float32)
    assert {path: value.item() for path, value in functional.trainable.items()} == {"w": 2.0, "w_1": 3.0}
    assert functional.apply_fn({"w": 10.0, "w_1": 1.0}, {}, (x,)).tolist() == [[11.0, 11.0]]


def test_function_that_was_called_once_can_be_exported_twice():
    variable = tf.Variable(2.0)

    @tf.function
    def double(x):
        return variable * x

    double(tf.ones((4, 3)))
    for _ in range(2):
        assert functionalize(double).inputs[0].shape == (None, 3)


def test_frozen_variables_of_params_are_not_trainable():
    @tf.function(
        input_signature=[{"w": tf.TensorSpec((2,)), "steps": tf.TensorSpec((), tf.int32)}, tf.TensorSpec((None, 2))]
    )
    def scale(params, x):
        return x * params["w"] * tf.cast(params["steps"], tf.float32)

    functional = functionalize((scale, {"w": np.ones(2, np.float32), "steps": np.int32(3)}))
    assert list(functional.trainable) == ["w"]
    assert list(functional.frozen) == ["steps"]


def test_rnn_does_not_use_cudnn_where_there_is_a_gpu(monkeypatch):
    rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    model = models.by_id("lstm").build()
    monkeypatch.setattr(rnn, "_is_gpu_available", lambda: True)
    assert functionalize(model).trainable
    assert model.layers[0].use_cudnn == "auto"
