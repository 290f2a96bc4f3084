import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from exporter import empirical_ntk_fn_tf, get_apply_fn_and_params, ntk_features_fn
from exporter.compat.neural_tangents_names import import_neural_tangents
from exporter.errors import ExportError
from exporter.ntk.count_sketch import Sketch

IMPLEMENTATIONS = ("auto", "layerwise", "jacobian_contraction", "ntk_vector_products", "structured_derivatives")


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def images(n, seed=0, shape=(8, 8, 3)):
    return tf.random.stateless_normal((n, *shape), (seed, 1))


def tf_jacobian(f, variables, x):
    """∂f(x)/∂variables (N, O, P) by TensorFlow alone."""
    with tf.GradientTape() as tape:
        tape.watch(variables)
        outputs = f(x)
    jacobians = tape.jacobian(outputs, variables, unconnected_gradients="zero")
    return np.concatenate([np.reshape(j, (*outputs.shape, -1)) for j in jacobians], -1).astype(np.float64)


def tf_kernel(f, variables, x1, x2):
    """The kernel (N1, N2, O, O) by TensorFlow alone."""
    return np.einsum("nip,mjp->nmij", tf_jacobian(f, variables, x1), tf_jacobian(f, variables, x2))


def inference(model):
    return lambda x: model(x, training=False)


def perturb(model):
    """Gives a model variables that tell a mistake: no zeros, no ones."""
    rng = np.random.default_rng(0)
    for v in model.variables:
        if v.dtype in ("float32", tf.float32):
            v.assign(v + rng.uniform(0.01, 0.05, v.shape).astype(np.float32))
    return model


def keras3_cnn(outputs=3):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(outputs),
        ]
    )
    model.build((None, 8, 8, 3))
    return perturb(model)


def keras3_functional():
    x = keras.Input((8, 8, 3))
    h = keras.layers.DepthwiseConv2D(3, activation="swish")(x)
    h = keras.layers.Conv2D(3, 1)(h) + keras.layers.Conv2D(3, 3)(x)
    return perturb(keras.Model(x, keras.layers.GlobalAveragePooling2D()(h)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, activation="tanh")

    def call(self, x):
        return self.dense(tf.reshape(x, (-1, 192)))


def keras3_subclassed():
    model = Subclassed()
    model(images(1))
    return perturb(model)


def keras2_cnn():
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.Conv2D(2, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)]
    )
    model.build((None, 8, 8, 3))
    return perturb(model)


class Module(tf.Module):
    """A dense layer on images, with a variable that is not trained."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.random.stateless_normal((192, 3), (1, 2)) / 10, name="w")
        self.scale = tf.Variable(0.7, trainable=False, name="scale")

    def compute(self, x):
        return tf.tanh(tf.reshape(x, (-1, 192)) @ self.w) * self.scale


class ModuleWithShape(Module):
    input_shape = (None, 8, 8, 3)

    def __call__(self, x):
        return self.compute(x)


class ModuleWithSignature(Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3))])
    def __call__(self, x):
        return self.compute(x)


MODELS = {
    "Keras 3 sequential": (keras3_cnn, inference),
    "Keras 3 functional": (keras3_functional, inference),
    "Keras 3 subclassed": (keras3_subclassed, inference),
    "Keras 2": (keras2_cnn, inference),
    "module with input_shape": (ModuleWithShape, lambda module: module),
    "module with input_signature": (ModuleWithSignature, lambda module: module),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind):
    make, as_function = MODELS[kind]
    model = make()
    f, x1, x2 = as_function(model), images(3), images(2, seed=1)
    apply_fn, params = get_apply_fn_and_params(model)
    np.testing.assert_allclose(apply_fn(params, x1.numpy()), f(x1), rtol=1e-4, atol=1e-5)
    assert {type(value) for value in params.values()} == {np.ndarray}
    assert len(params) == len(model.trainable_variables)

    variables = [v.value if isinstance(v, keras.Variable) else v for v in model.trainable_variables]
    expected = tf_kernel(f, variables, x1, x2)
    kernel = empirical_ntk_fn_tf(model, trace_axes=(), vmap_axes=0, implementation=3)(x1, x2, params)
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# The examples of neural_tangents.experimental, smaller


def test_cnn_of_the_docstring():
    x_train, x_test = images(6), images(3, seed=1)
    f = keras.Sequential([keras.layers.Conv2D(4, (3, 3), activation="relu"), keras.layers.Conv2D(4, (3, 3))])
    f.add(keras.layers.Flatten())
    f.add(keras.layers.Dense(5))
    f.build((None, *x_train.shape[1:]))
    _, params = get_apply_fn_and_params(f)
    expected = tf_kernel(inference(f), [v.value for v in f.trainable_variables], x_test, x_train)

    kernel_fn = empirical_ntk_fn_tf(f, vmap_axes=0)
    ntk_test_train = kernel_fn(x_test, x_train, params)
    assert ntk_test_train.shape == (3, 6)
    np.testing.assert_allclose(ntk_test_train, np.einsum("nmii->nm", expected) / 5, rtol=1e-3)

    kernel_fn = empirical_ntk_fn_tf(f, trace_axes=(), vmap_axes=0)
    k_test_train = kernel_fn(x_test, x_train, params)
    assert k_test_train.shape == (3, 6, 5, 5)
    np.testing.assert_allclose(k_test_train, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_fcn_of_the_docstring():
    x_train, x_test = images(6), images(3, seed=1)
    f = keras.Sequential()
    f.add(keras.layers.Flatten())
    f.add(keras.layers.Dense(32, activation="relu"))
    f.add(keras.layers.Dense(5))
    f.build((None, *x_train.shape[1:]))
    _, params = get_apply_fn_and_params(f)
    variables = [v.value for v in f.trainable_variables]

    ntk_fn = empirical_ntk_fn_tf(f, vmap_axes=0, implementation=2)
    ntk_test_test = ntk_fn(x_test, None, params)
    expected = tf_kernel(inference(f), variables, x_test, x_test)
    np.testing.assert_allclose(ntk_test_test, np.einsum("nmii->nm", expected) / 5, rtol=1e-4)

    ntk_fn = empirical_ntk_fn_tf(f, diagonal_axes=(0,))
    ntk_train_train_diag = ntk_fn(x_train, None, params)
    expected = tf_kernel(inference(f), variables, x_train, x_train)
    assert ntk_train_train_diag.shape == (6,)
    np.testing.assert_allclose(ntk_train_train_diag, np.einsum("nnii->n", expected) / 5, rtol=1e-4)


def test_arguments_are_those_of_neural_tangents():
    experimental = import_neural_tangents().experimental
    trainable_only, more = ("trainable_only", True), [("trace_samples", None), ("trace_seed", 0)]
    for ours, theirs, added in [
        (empirical_ntk_fn_tf, experimental.empirical_ntk_fn_tf, [trainable_only, *more]),
        (get_apply_fn_and_params, experimental.get_apply_fn_and_params, [trainable_only]),
    ]:
        arguments = [(p.name, p.default, p.kind) for p in inspect.signature(theirs).parameters.values()]
        own = [(p.name, p.default, p.kind) for p in inspect.signature(ours).parameters.values()]
        assert own == arguments + [(*argument, inspect.Parameter.KEYWORD_ONLY) for argument in added]


def test_neural_tangents_can_be_imported_afterwards():
    code = (
        "import exporter; exporter.get_apply_fn_and_params\n"
        "import neural_tangents as nt; nt.empirical_ntk_fn, nt.stax.Dense, nt.predict.gp_inference"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Parameters


def test_the_same_parameters_serve_tensorflow_and_jax():
    nt = import_neural_tangents()
    model, x1, x2 = keras3_functional(), images(3), images(2, seed=1)
    apply_fn, params = get_apply_fn_and_params(model)
    expected = jax.jit(nt.empirical_ntk_fn(apply_fn, vmap_axes=0))(x1.numpy(), x2.numpy(), params)
    as_tensors = {path: tf.constant(value) for path, value in params.items()}
    for implementation in IMPLEMENTATIONS:
        ntk_fn = empirical_ntk_fn_tf(model, vmap_axes=0, implementation=implementation)
        kernel = ntk_fn(x1, x2, params)
        np.testing.assert_allclose(kernel, expected, rtol=1e-4, err_msg=implementation)
        np.testing.assert_array_equal(ntk_fn(x1.numpy(), x2.numpy(), as_tensors), kernel)


def test_kernel_is_at_the_parameters_given():
    module, x = ModuleWithShape(), images(3)
    ntk_fn = empirical_ntk_fn_tf(module, trace_axes=(), vmap_axes=0)
    _, params = get_apply_fn_and_params(module)
    module.w.assign(module.w * 2)
    kernel = ntk_fn(x, None, {path: value * 2 for path, value in params.items()})
    np.testing.assert_allclose(kernel, tf_kernel(module, [module.w], x, x), rtol=1e-4, atol=1e-4)


def test_frozen_variables_are_those_at_the_time_of_conversion():
    module, x = ModuleWithShape(), images(3)
    _, params = get_apply_fn_and_params(module)
    before = empirical_ntk_fn_tf(module, vmap_axes=0)
    module.scale.assign(2 * module.scale)
    after = empirical_ntk_fn_tf(module, vmap_axes=0)
    np.testing.assert_allclose(after(x, None, params), 4 * before(x, None, params), rtol=1e-5)


def test_all_variables():
    model, x = keras3_cnn(), images(2)
    apply_fn, params = get_apply_fn_and_params(model, trainable_only=False)
    assert len(params) == 8
    np.testing.assert_allclose(apply_fn(params, x.numpy()), model(x), rtol=1e-4, atol=1e-4)
    variables = [v.value for v in model.variables if v.dtype == "float32"]
    expected = tf_kernel(inference(model), variables, x, x)
    ntk_fn = empirical_ntk_fn_tf(model, trace_axes=(), vmap_axes=0, trainable_only=False)
    np.testing.assert_allclose(ntk_fn(x, None, params), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_wrong_parameters():
    model, x = ModuleWithShape(), images(2)
    apply_fn, params = get_apply_fn_and_params(model)
    with pytest.raises(ValueError, match=r"dict of the 1 variables .* received one without \['w'\]"):
        apply_fn({}, x.numpy())
    _, all_variables = get_apply_fn_and_params(model, trainable_only=False)
    with pytest.raises(ValueError, match=r"with \['scale'\], which are not trainable; .* pass trainable_only=False"):
        apply_fn(all_variables, x.numpy())
    assert apply_fn({**params, "of another model": np.zeros(3, np.float32)}, x.numpy()).shape == (2, 3)


# Inputs and outputs


def two_inputs_and_outputs(as_dict):
    a, b = keras.Input((4,), name="b_first"), keras.Input((3,), name="a_second")
    h = keras.layers.Concatenate()([keras.layers.Dense(3)(a), b])
    outputs = [keras.layers.Dense(2, name="wide")(h), keras.layers.Dense(1, name="narrow")(h * h)]
    inputs = {"b_first": a, "a_second": b} if as_dict else [a, b]
    model = keras.Model(inputs, {"wide": outputs[0], "nested": [outputs[1]]} if as_dict else outputs)
    return perturb(model)


@pytest.mark.parametrize(("as_dict", "implementation"), [(True, "layerwise"), (False, "structured_derivatives")])
def test_several_inputs_and_outputs(as_dict, implementation):
    model = two_inputs_and_outputs(as_dict)

    def example(n, seed):
        a, b = images(n, seed, (4,)), images(n, seed + 1, (3,))
        return {"a_second": b, "b_first": a} if as_dict else [a, b]

    x1, x2 = example(3, 0), example(2, 5)
    _, params = get_apply_fn_and_params(model)
    kernels = empirical_ntk_fn_tf(model, trace_axes=(), vmap_axes=0, implementation=implementation)(x1, x2, params)
    tf.nest.assert_same_structure(kernels, model(x1))
    variables = [v.value for v in model.trainable_variables]
    for i, kernel in enumerate(tf.nest.flatten(kernels)):
        expected = tf_kernel(lambda x, i=i: tf.nest.flatten(model(x))[i], variables, x1, x2)
        np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("trace_axes", "diagonal_axes", "vmap_axes"),
    [((1,), (2,), 0), ((), (), None), ((), (0, -1), 0), ((-1, 0), (), None)],
)
def test_layerwise_has_the_axes_of_neural_tangents(trace_axes, diagonal_axes, vmap_axes):
    x = keras.Input((3, 2))
    model = perturb(keras.Model(x, keras.layers.Dense(4, activation="tanh")(x)))
    x1, x2 = images(2, 0, (3, 2)), images(2, 1, (3, 2))
    _, params = get_apply_fn_and_params(model)
    axes = dict(trace_axes=trace_axes, diagonal_axes=diagonal_axes, vmap_axes=vmap_axes)
    ours, theirs = (empirical_ntk_fn_tf(model, **axes, implementation=i)(x1, x2, params) for i in ("layerwise", 3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_layerwise_with_another_batch_axis():
    with pytest.raises(ValueError, match="Expected vmap_axes 0 or None for implementation='layerwise', received 1"):
        empirical_ntk_fn_tf(ModuleWithShape(), vmap_axes=1, implementation="layerwise")


def test_features_are_tensorflows_jacobians_projected():
    model = two_inputs_and_outputs(as_dict=True)
    _, params = get_apply_fn_and_params(model)
    x = {"a_second": images(3, 1, (3,)), "b_first": images(3, 0, (4,))}
    received = ntk_features_fn(model, dimensions=64, seed=2)(x, params)
    outputs, received = tf.nest.flatten(model(x)), jax.tree.leaves(received)
    for k, features in enumerate(received):
        with tf.GradientTape() as tape:
            output = tf.nest.flatten(model(x))[k]
        jacobians = tape.jacobian(output, [v.value for v in model.trainable_variables], unconnected_gradients="zero")
        by_path = dict(zip([v.path for v in model.trainable_variables], map(np.asarray, jacobians), strict=True))
        assert set(params) == set(by_path)
        np.testing.assert_allclose(features, Sketch(64, 2).project(by_path), rtol=1e-4, atol=1e-5)
        assert features.shape == (len(outputs[k]), 64)


def test_features_of_wrong_arguments():
    with pytest.raises(ValueError, match=r"^Expected dimensions from 1 and a seed from 0, received 0 and 0\.$"):
        ntk_features_fn(two_inputs_and_outputs(True), dimensions=0)
    with pytest.raises(ValueError, match=r"received a tf\.function\.$"):
        ntk_features_fn(tf.function(lambda p, x: x))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(
        ValueError, match=r"^Expected different trace_axes other than the batch axis, received \(0,\)\.$"
    ):
        ntk_features_fn(model, trace_axes=(0,))(np.zeros((1, 3), "f"), get_apply_fn_and_params(model)[1])


def test_wrong_inputs():
    apply_fn, params = get_apply_fn_and_params(two_inputs_and_outputs(as_dict=True))
    with pytest.raises(ValueError, match=r"2 inputs with leaves at \['b_first', 'a_second'\] .* received .* \['c'\]"):
        apply_fn(params, {"c": np.zeros((1, 4), np.float32)})


# tf.functions of parameters and inputs


PARAMS, X = tf.TensorSpec((1, 2, 1, 4)), tf.TensorSpec((None, 2, 3, 1))


def scale_by_mean(params, x):
    return x * tf.reduce_mean(params**2) + 1.0


def without_batch_axis(params, x):
    return tf.reduce_mean(x) * params**2 + 1.0


SAME = {
    scale_by_mean: lambda params, x: x * jnp.mean(params**2) + 1.0,
    without_batch_axis: lambda params, x: jnp.mean(x) * params**2 + 1.0,
}


@pytest.mark.parametrize(
    ("f", "trace_axes", "diagonal_axes"),
    [
        (scale_by_mean, (), ()),
        (scale_by_mean, (-1,), (1, 2)),
        (without_batch_axis, (1,), ()),
        (without_batch_axis, (), (1,)),
    ],
)
def test_function_is_as_the_same_in_jax(f, trace_axes, diagonal_axes):
    nt = import_neural_tangents()
    axes = dict(trace_axes=trace_axes, diagonal_axes=diagonal_axes)
    params, x1, x2 = images(1, 2, (2, 1, 4)), images(2, 3, (2, 3, 1)), images(3, 4, (2, 3, 1))
    kernel = empirical_ntk_fn_tf(tf.function(f, input_signature=[PARAMS, X]), **axes)(x1, x2, params)
    expected = jax.jit(nt.empirical_ntk_fn(SAME[f], **axes))(x1.numpy(), x2.numpy(), params.numpy())
    np.testing.assert_allclose(kernel, expected, rtol=1e-4)


def test_function_of_pytrees_with_captured_variable_and_constant():
    gain, shift = tf.Variable([2.0, 3.0]), tf.constant([0.5, 0.25])

    @tf.function(
        input_signature=[
            {"w": tf.TensorSpec((3, 2)), "b": [tf.TensorSpec((2,))]},
            (tf.TensorSpec((None, 3)), tf.TensorSpec((None, 2))),
        ]
    )
    def f(params, x):
        y = x[0] @ params["w"] + params["b"][0] * x[1]
        return {"y": y * gain + shift, "none": None, "sum": (tf.reduce_sum(y**2, axis=1),)}

    params = {"w": images(3, 0, (2,)), "b": [images(2, 1, ())]}
    x1, x2 = ((images(n, n, (3,)), images(n, n + 5, (2,))) for n in (3, 2))
    kernels = empirical_ntk_fn_tf(f, trace_axes=(), vmap_axes=0, implementation="auto")(x1, x2, params)
    variables = [tf.Variable(params["w"]), tf.Variable(params["b"][0])]

    def output(x, key):
        return tf.reshape(tf.nest.flatten(f({"w": variables[0], "b": [variables[1]]}, x)[key])[0], (len(x[0]), -1))

    expected = tf_kernel(lambda x: output(x, "y"), variables, x1, x2)
    np.testing.assert_allclose(kernels["y"], expected, rtol=1e-4, atol=1e-4)
    expected = tf_kernel(lambda x: output(x, "sum"), variables, x1, x2)[:, :, 0, 0]
    np.testing.assert_allclose(kernels["sum"][0], expected, rtol=1e-4, atol=1e-4)
    assert kernels["none"] is None


def test_function_with_the_wrong_structure_of_parameters():
    f = tf.function(
        lambda params, x: params["w"] * x, input_signature=[{"w": tf.TensorSpec(())}, tf.TensorSpec((None,))]
    )
    with pytest.raises(ValueError, match=r"leaves at \['0/w', '1'\], received leaves at \['0/v', '1'\]"):
        empirical_ntk_fn_tf(f)(tf.ones(3), None, {"v": tf.constant(1.0)})


@pytest.mark.parametrize("f", [tf.function(scale_by_mean), tf.function(lambda x: x, input_signature=[X])])
def test_function_without_the_signature(f):
    with pytest.raises(ValueError, match=r"signature f\(params, x\), received .*; decorate it with tf.function"):
        empirical_ntk_fn_tf(f)


def test_function_has_no_parameters_of_its_own():
    with pytest.raises(ValueError, match=r"received a tf\.function; pass it to empirical_ntk_fn_tf"):
        get_apply_fn_and_params(tf.function(scale_by_mean, input_signature=[PARAMS, X]))


# The function that comes out


def test_is_one_program_compiled_by_xla_and_has_gradients():
    module, x1, x2 = ModuleWithShape(), images(3), images(2, seed=1)
    _, params = get_apply_fn_and_params(module)
    ntk_fn = empirical_ntk_fn_tf(module, vmap_axes=0)
    function = ntk_fn.get_concrete_function(x1, x2, params).function_def
    assert function.attr["_XlaMustCompile"].b
    with tf.GradientTape() as tape:
        tape.watch(x1)
        total = tf.reduce_sum(ntk_fn(x1, x2, params))
    gradient = tape.gradient(total, x1)
    apply_fn, _ = get_apply_fn_and_params(module)
    jax_ntk_fn = import_neural_tangents().empirical_ntk_fn(apply_fn, vmap_axes=0)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(jax_ntk_fn(x, x2.numpy(), params))))(x1.numpy())
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_float64_stays_float64():
    f = tf.function(
        lambda w, x: tf.sin(x @ w),
        input_signature=[tf.TensorSpec((3, 1), tf.float64), tf.TensorSpec((None, 3), tf.float64)],
    )
    w, x = np.full((3, 1), 0.5), np.full((3, 3), 1 / 3)
    kernel = empirical_ntk_fn_tf(f, implementation="structured_derivatives")(tf.constant(x), None, tf.constant(w))
    assert kernel.dtype == tf.float64
    np.testing.assert_allclose(kernel, np.full((3, 3), np.cos(0.5) ** 2 / 3), rtol=1e-14)


def test_what_cannot_be_converted():
    with pytest.raises(ExportError, match=r"received builtins\.function"):
        empirical_ntk_fn_tf(scale_by_mean)
    with pytest.raises(ValueError, match=r"expected one of 'auto' \(0\), .*, received 'fast'"):
        empirical_ntk_fn_tf(ModuleWithShape(), implementation="fast")


# Axes that the model leaves open


def keras3_of_any_length():
    x, weight = keras.Input((None, 2), name="x"), keras.Input((2,), name="weight")
    y = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(3, activation="tanh")(x))
    return keras.Model([x, weight], keras.layers.Dense(2)(keras.layers.Concatenate()([y, weight])))


def series(n, length, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((n, length, 2), (n, 2))]


def test_open_axes_have_the_sizes_of_each_call():
    model = keras3_of_any_length()
    apply_fn, params = get_apply_fn_and_params(model)
    ntk_fn = empirical_ntk_fn_tf(model, vmap_axes=0)
    sides = series(3, 7), series(2, 4, seed=1)
    for x in sides:
        np.testing.assert_allclose(jax.jit(apply_fn)(params, x), model(x), rtol=1e-4, atol=1e-6)
    jacobian = jax.jit(jax.jacobian(apply_fn))
    rows = [
        np.concatenate([np.reshape(j, (*j.shape[:2], -1)) for j in jacobian(params, x).values()], -1) for x in sides
    ]
    for a, b in ((0, 0), (1, 1), (0, 1)):
        expected = np.einsum("nop,mop->nm", rows[a], rows[b]) / 2
        np.testing.assert_allclose(ntk_fn(sides[a], sides[b], params), expected, rtol=1e-4)


def test_open_axes_that_do_not_fit():
    model = keras3_of_any_length()
    _, params = get_apply_fn_and_params(model)
    x1, x2 = series(3, 7), series(2, 4)
    layerwise = empirical_ntk_fn_tf(model, vmap_axes=0, implementation="layerwise")
    with pytest.raises(ValueError, match=r"examples of one shape in x1 and x2 .* choose another implementation"):
        layerwise(x1, x2, params)
    with pytest.raises(ValueError, match=r"Expected input 'x' with 3 axes, received shape \(3, 2\)"):
        layerwise([x1[0][:, 0], x1[1]], None, params)
