"""The functionalize stage: every model of the zoo against TensorFlow, the choice of variables, and its errors."""

import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from jax import export
from jax.experimental import enable_x64

from exporter.errors import ExportError
from exporter.functionalize import TensorSpec, functionalize
from exporter.tracing import trace

L = keras.layers


def _relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)


def _widen(values):
    return jax.tree.map(lambda v: v.astype(np.float64) if np.issubdtype(v.dtype, np.floating) else v, values)


@pytest.fixture(params=models.ZOO, ids=lambda entry: entry.id, scope="module")
def zoo(request):
    entry = request.param
    model = entry.build()
    return entry, model, functionalize(model, **entry.options)


# ------------------------------------------------------------------------------------------------ the function itself


def test_forward_equals_tensorflow_at_any_batch_size(zoo):
    entry, model, functional = zoo
    for batch_size in (1, 3):
        inputs = models.random_inputs(functional.inputs, batch_size)
        output = jax.jit(functional.apply_fn)(functional.trainable, functional.frozen, inputs)
        assert output.dtype == functional.output.dtype
        assert output.shape == (batch_size, *functional.output.shape[1:])
        assert _relative_error(output, entry.call(model, inputs)) < 1e-5


def test_float64_evaluation(zoo):
    """Loops, lists and constants widen with the variables and inputs."""
    entry, model, functional = zoo
    inputs = models.random_inputs(functional.inputs, 2)
    with enable_x64():
        output = jax.jit(functional.apply_fn)(*_widen((dict(functional.trainable), dict(functional.frozen), inputs)))
    assert output.dtype == np.float64
    assert _relative_error(output, entry.call(model, inputs)) < 2e-6


def test_lowers_with_a_symbolic_batch_size_and_runs_on_none(zoo):
    entry, model, functional = zoo
    (batch,) = export.symbolic_shape("batch")
    specs = [jax.ShapeDtypeStruct((batch, *spec.shape[1:]), spec.dtype) for spec in functional.inputs]
    apply = jax.jit(lambda *inputs: functional.apply_fn(functional.trainable, functional.frozen, inputs))
    call = export.export(apply)(*specs).call
    inputs = models.random_inputs(functional.inputs, 2)
    assert _relative_error(call(*inputs), entry.call(model, inputs)) < 1e-5
    assert apply(*models.random_inputs(functional.inputs, 0)).shape == (0, *functional.output.shape[1:])


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


def _gradient_tape_models():
    chosen = ["activations", "conv1d_transpose", "batch_norm", "attention", "residual", "keras2_cnn", "tf_module"]
    return [models.by_id(name) for name in chosen] + [e for e in models.tagged("rnn") if e.id != "tf_module"]


@pytest.mark.parametrize("entry", _gradient_tape_models(), ids=lambda entry: entry.id)
def test_jacobian_equals_gradient_tape(entry):
    model = entry.build()
    functional = functionalize(model, **entry.options)
    inputs = models.random_inputs(functional.inputs, 2)
    jacobian = jax.jit(jax.jacrev(functional.apply_fn))(dict(functional.trainable), functional.frozen, inputs)
    variables = {v.path: v.variable for v in trace(model).variables if v.path in functional.trainable}
    with tf.GradientTape(persistent=True) as tape:
        output = entry.call(model, inputs)
    expected = tape.jacobian(output, variables, unconnected_gradients="zero", experimental_use_pfor=False)
    assert len(jacobian) == len(variables) == len(model.trainable_variables)
    scale = max(np.abs(value).max() for value in jacobian.values())
    for path, value in jacobian.items():
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
    np.testing.assert_allclose(gradient[bias.path], tape.gradient(output, bias.value), rtol=1e-6)


def test_convolutions_stay_single_equations():
    functional = functionalize(models.by_id("grouped_conv").build())
    inputs = models.random_inputs(functional.inputs, 2)
    equations = jax.make_jaxpr(functional.apply_fn)(dict(functional.trainable), {}, inputs).eqns
    convolutions = [e for e in equations if e.primitive.name == "conv_general_dilated"]
    assert [e.params["feature_group_count"] for e in convolutions] == [2]


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
    _raises("Keras to have recorded the shapes of the inputs left, right of 'sum', received only input", model)


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
    assert list(functional.trainable) == list(expected.trainable)
    assert sorted(functional.frozen) == sorted(expected.frozen)
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


# ---------------------------------------------------------------------------------------------- choice of variables


def test_frozen_layers_and_batch_statistics_are_frozen():
    functional = functionalize(models.by_id("frozen_layers").build())
    names = {path.partition("/")[2] for path in functional.frozen}
    assert {name.rpartition("/")[2] for name in names} == {"kernel", "bias", "moving_mean", "moving_variance"}
    assert not functional.excluded
    assert len(functional.trainable) == 4


def test_random_seeds_are_not_variables():
    functional = functionalize(models.by_id("batch_norm").build())
    assert not [path for path in (*functional.trainable, *functional.frozen) if "seed" in path]


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("*", {"kernel", "bias"}),
        ("*kernel", {"kernel"}),
        (["!*bias"], {"kernel"}),
        (["*", "!*/kernel"], {"bias"}),
        (["*bias", "*kernel"], {"kernel", "bias"}),
    ],
)
def test_patterns(patterns, kept):
    functional = functionalize(models.by_id("mlp").build(), trainable=patterns)
    assert {path.rpartition("/")[2] for path in functional.trainable} == kept
    assert {path.rpartition("/")[2] for path in functional.excluded} == {"kernel", "bias"} - kept
    assert functional.excluded == set(functional.frozen)


def test_patterns_cannot_thaw_a_frozen_layer():
    model = models.by_id("frozen_layers").build()
    with pytest.raises(ExportError, match="matches none"):
        functionalize(model, trainable=model.layers[0].kernel.path)


def test_paths_are_the_same_in_every_process():
    script = (
        "import models; from exporter.functionalize import functionalize\n"
        "for name in ('tf_module', 'keras2_gru', 'mlp'):\n"
        "    f = functionalize(models.by_id(name).build()); print(list(f.trainable), list(f.frozen), f.inputs)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=_environment(PYTHONHASHSEED=seed)
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second
    assert "'layers/0/w'" in first


def _environment(**variables):
    path = os.pathsep.join([os.path.dirname(models.__file__), os.getcwd()])
    return {**os.environ, "PYTHONPATH": path, **variables}


# --------------------------------------------------------------------------------------------------------- errors


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
    path = model.layers[0].kernel.path
    _raises("'kernal' matches none .nearest path: .*kernel", model, trainable=["kernal"])
    _raises(f"The trainable variables are '{path}'", model, trainable=["nothing/*"])
    _raises("at least one variable, received .'!\\*'.", model, trainable=["!*"])


def test_nothing_trainable():
    model = _sequential(L.Dense(2))
    model.trainable = False
    _raises("Expected 'model' to have trainable variables, received a model of 2 variables with none", model)


def test_output_without_the_chosen_variables():
    model = models.by_id("dict_outputs").build()
    paths = [layer.kernel.path for layer in model.layers if hasattr(layer, "kernel")]
    _raises("Output 'embedding' .* its kernel is zero", model, output="embedding", trainable=paths[1:])


def test_weights_that_are_not_finite():
    model = _sequential(L.Dense(2, name="diverged"))
    model.layers[0].bias.assign([0.0, np.nan])
    _raises("received NaN or infinity in variable 'model/diverged/bias'", model)


def test_inputs_that_cannot_be_served():
    _raises(
        "known sizes but for the batch axis, received shape .None, None, 3.", _sequential(L.Dense(2), shape=(None, 3))
    )
    text = keras.Input((1,), dtype="string", name="text")
    _raises("Input 'text' .* received string; move the preprocessing", keras.Model(text, L.Identity()(text)))
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
    model = _sequential(L.Hashing(4, name="hashed"), L.Embedding(4, 2), dtype="int32")
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


def test_jax_and_tf2jax_are_left_as_they_were():
    import tf2jax
    from tf2jax._src import config, ops

    table, settings = dict(ops._jax_ops), config.copy_config()
    functionalize(models.by_id("conv3d").build())
    assert table == ops._jax_ops
    assert settings == config.copy_config()
    assert tf2jax.get_config("convert_custom_gradient")
    assert jnp.zeros(()).dtype == jnp.float32


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
