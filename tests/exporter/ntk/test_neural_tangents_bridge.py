import functools
import itertools
import math
import string

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from exporter.compat.jax_names import enable_x64
from exporter.compat.neural_tangents_names import import_neural_tangents
from exporter.ntk import neural_tangents_bridge as bridge
from exporter.ntk.neural_tangents_bridge import IMPLEMENTATIONS, empirical_ntk_fn

EXPLICIT = ("jacobian_contraction", "ntk_vector_products", "structured_derivatives")


def test_implementations_are_numbered_as_in_neural_tangents():
    nt = import_neural_tangents()
    assert {i.name.lower(): int(i) for i in nt.NtkImplementation} == IMPLEMENTATIONS


# The kernel against an explicit Jacobian in float64


@pytest.fixture
def x64():
    with enable_x64():
        yield


@functools.cache
def jitted_jacobian(f):
    return jax.jit(jax.jacobian(f))


def oracle(f, x1, x2, params, trace_axes=(), diagonal_axes=()):
    """The kernel of one output array from explicit Jacobians, its axes as the docstring of empirical_ntk_fn says."""

    def jacobian(x):
        leaves = jax.tree.leaves(jitted_jacobian(f)(params, x))
        shape = f(params, x).shape
        return np.concatenate([np.reshape(leaf, (*shape, -1)) for leaf in leaves], axis=-1)

    j1, j2 = jacobian(x1), jacobian(x1 if x2 is None else x2)
    rank = j1.ndim - 1
    trace, diagonal = ({axis % rank for axis in axes} for axes in (trace_axes, diagonal_axes))
    first, second = string.ascii_letters[:rank], string.ascii_letters[rank : 2 * rank]
    second = "".join(a if i in trace | diagonal else b for i, (a, b) in enumerate(zip(first, second, strict=True)))
    kept = "".join(
        "" if i in trace else a if i in diagonal else a + b for i, (a, b) in enumerate(zip(first, second, strict=True))
    )
    size = math.prod(j1.shape[axis] for axis in trace)
    return np.einsum(f"{first}Z,{second}Z->{kept}", j1, j2) / size


def fcn(params, x):
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def fcn_params(sizes=(4, 5, 3)):
    shapes = list(itertools.pairwise(sizes))
    return [(normal(i, n_in, n_out) / n_in**0.5, normal(i + 9, n_out) / 3) for i, (n_in, n_out) in enumerate(shapes)]


def cnn(params, x):
    """(N, 4, 5, 2) to (N, 4, 5, 3), the second layer depthwise, the third a product per position."""
    w1, w2, w3, b = params
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, w1, (1, 1), "SAME", dimension_numbers=dimensions)
    x = jax.lax.conv_general_dilated(
        jnp.tanh(x), w2, (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=x.shape[-1]
    )
    return jnp.tanh(x) @ w3 + b


def cnn_params():
    return [normal(i, *shape) / 3 for i, shape in enumerate([(3, 3, 2, 4), (3, 2, 1, 4), (4, 3), (3,)])]


def inputs(n, *shape, seed=2):
    return normal(seed, n, *shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("trace_axes", "diagonal_axes", "vmap_axes", "symmetric"),
    [
        ((-1,), (), 0, True),
        ((), (), None, False),
        ((), (-1,), 0, False),
        ((1,), (0,), None, True),
        ((0,), (1,), 0, False),
        ((0, 1), (), None, False),
    ],
)
@pytest.mark.parametrize("implementation", EXPLICIT)
def test_fcn(implementation, trace_axes, diagonal_axes, vmap_axes, symmetric):
    axes = dict(trace_axes=trace_axes, diagonal_axes=diagonal_axes)
    ntk_fn = jax.jit(empirical_ntk_fn(fcn, **axes, vmap_axes=vmap_axes, implementation=implementation))
    params, x1 = fcn_params(), inputs(3, 4)
    x2 = None if symmetric else inputs(3 if 0 in trace_axes + diagonal_axes else 2, 4, seed=3)
    np.testing.assert_allclose(ntk_fn(x1, x2, params), oracle(fcn, x1, x2, params, **axes), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("trace_axes", "diagonal_axes", "vmap_axes", "implementations"),
    [
        ((-1,), (), 0, (1, 3)),
        ((3, 1), (2,), 0, (2, 3)),
        ((2,), (0, -1), 0, (1, 3)),
        ((), (2, -3), 0, (2, 3)),
        ((0, -2), (3,), None, (1, 3)),
        ((3, 1, 2, 0), (), 0, (2, 3)),
    ],
)
def test_cnn(trace_axes, diagonal_axes, vmap_axes, implementations):
    axes = dict(trace_axes=trace_axes, diagonal_axes=diagonal_axes)
    params, x1, x2 = cnn_params(), inputs(2, 4, 5, 2), inputs(2, 4, 5, 2, seed=3)
    expected = oracle(cnn, x1, x2, params, **axes)
    for number in implementations:
        kernel = jax.jit(empirical_ntk_fn(cnn, **axes, vmap_axes=vmap_axes, implementation=number))(x1, x2, params)
        np.testing.assert_allclose(kernel, expected, rtol=1e-9, atol=1e-12, err_msg=f"implementation {number}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", EXPLICIT)
def test_pytrees_of_inputs_parameters_and_outputs(implementation):
    def f(params, x):
        left, right = fcn(params["left"], x["a"]), fcn(params["right"], x["b"])
        return [left, {"sum": jnp.sum(left * right, axis=-1)}]

    def example(n, seed):
        return {"a": inputs(n, 4, seed=seed), "b": inputs(n, 2, seed=seed + 1)}

    params = {"left": fcn_params(), "right": fcn_params((2, 3))}
    x1, x2 = example(3, 5), example(2, 7)
    kernels = jax.jit(empirical_ntk_fn(f, trace_axes=(), vmap_axes=0, implementation=implementation))(x1, x2, params)
    assert jax.tree.structure(kernels) == jax.tree.structure([0, {"sum": 0}])
    np.testing.assert_allclose(kernels[0], oracle(lambda p, x: f(p, x)[0], x1, x2, params), rtol=1e-9)
    np.testing.assert_allclose(kernels[1]["sum"], oracle(lambda p, x: f(p, x)[1]["sum"], x1, x2, params), rtol=1e-9)


def features_first(params, x, scale, shift=0.0):
    """x (4, N) and scale (N,) to (3, N)."""
    return (fcn(params, x.T) * scale[:, None] + shift * params[0][0][0, 0]).T


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("implementation", "output_axis"),
    [(name, 0) for name in EXPLICIT] + [("jacobian_contraction", 1), ("ntk_vector_products", 1), ("auto", 1)],
)
def test_keyword_arguments_and_axes_other_than_zero(implementation, output_axis):
    def f(params, x, scale, shift=0.0):
        return jnp.moveaxis(features_first(params, x, scale, shift), 1, output_axis)

    params = fcn_params()
    x1, x2 = inputs(3, 4).T, inputs(2, 4, seed=3).T
    scale1, scale2 = jnp.arange(1.0, 4.0), jnp.arange(5.0, 7.0)
    axes = dict(trace_axes=(1 - output_axis,), vmap_axes=(1, output_axis, dict(scale=0)))
    ntk_fn = jax.jit(empirical_ntk_fn(f, **axes, implementation=implementation))
    kernel = ntk_fn(x1, x2, params, scale=(scale1, scale2), shift=2.0)

    def f_of_pair(params, x_and_scale):
        return f(params, *x_and_scale, shift=2.0)

    expected = oracle(f_of_pair, (x1, scale1), (x2, scale2), params, trace_axes=(1 - output_axis,))
    np.testing.assert_allclose(kernel, expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("_j_rules", "_s_rules", "_fwd"),
    [(True, False, None), (False, True, None), (False, True, True), (False, False, False)],
)
def test_structured_derivatives_without_their_rules(_j_rules, _s_rules, _fwd):
    rules = dict(_j_rules=_j_rules, _s_rules=_s_rules, _fwd=_fwd)
    ntk_fn = jax.jit(empirical_ntk_fn(fcn, implementation="structured_derivatives", **rules))
    params, x1, x2 = fcn_params(), inputs(3, 4), inputs(2, 4, seed=3)
    np.testing.assert_allclose(ntk_fn(x1, x2, params), oracle(fcn, x1, x2, params, trace_axes=(1,)), rtol=1e-9)


def test_primitives_without_a_rule_do_not_warn():
    params = jnp.arange(1.0, 4.0)
    kernel = empirical_ntk_fn(lambda p, x: x * jnp.cumsum(p), implementation=3)(jnp.ones((2, 3)), None, params)
    np.testing.assert_allclose(kernel, jnp.full((2, 2), 2.0), rtol=1e-6)


# Which implementation


def test_defaults_and_names_are_those_of_neural_tangents():
    nt = import_neural_tangents()
    params, x = fcn_params(), inputs(3, 4)
    for spelling in (1, nt.NtkImplementation.JACOBIAN_CONTRACTION, "jacobian_contraction"):
        np.testing.assert_array_equal(
            empirical_ntk_fn(fcn)(x, None, params), empirical_ntk_fn(fcn, implementation=spelling)(x, None, params)
        )
    np.testing.assert_array_equal(empirical_ntk_fn(fcn)(x, None, params), nt.empirical_ntk_fn(fcn)(x, None, params))


@pytest.mark.parametrize("implementation", [4, -1, "Auto", "layerwise", None, 1.0])
def test_unknown_implementation(implementation):
    with pytest.raises(ValueError, match=r"expected one of 'auto' \(0\), .*, received"):
        empirical_ntk_fn(fcn, implementation=implementation)


@pytest.fixture
def measured(monkeypatch):
    """The measurements that AUTO makes, as it makes them."""
    made = []

    def measure(fns, args):
        made.append(bridge_measure(fns, args))
        return made[-1]

    bridge_measure = bridge.measure_implementations
    monkeypatch.setattr(bridge, "measure_implementations", measure)
    return made


def test_auto_measures_once_for_each_combination_of_shapes(measured):
    params, ntk_fn = fcn_params(), empirical_ntk_fn(fcn, vmap_axes=0, implementation=0)
    for _ in range(2):
        ntk_fn(inputs(3, 4), inputs(2, 4), params)
        ntk_fn(inputs(3, 4), None, params)
    assert [set(m) for m in measured] == [set(EXPLICIT)] * 2
    assert all(m.agrees and m.seconds > 0.0 for measurement in measured for m in measurement.values())


def test_auto_measures_under_a_trace(measured):
    params, ntk_fn = fcn_params(), empirical_ntk_fn(fcn, vmap_axes=0, implementation=0)
    x1, x2 = (inputs(2, n, 4) for n in (3, 5))
    batched = jax.jit(jax.vmap(lambda x1, x2: ntk_fn(x1, x2, params)))(x1, x2)
    jitted = jax.jit(ntk_fn)(x1[0], x2[0], params)
    np.testing.assert_allclose(batched[0], jitted, rtol=1e-5)
    np.testing.assert_allclose(ntk_fn(x1[0], x2[0], params), jitted, rtol=1e-5)
    assert len(measured) == 1  # all calls, in a transformation and outside, have the same shapes


def test_auto_passes_over_an_implementation_that_fails(measured):
    def gated(params, x):
        gate, value = jnp.split(x @ params, 2, axis=1)  # a primitive with two outputs
        return jnp.tanh(gate) * value

    params, x = inputs(4, 4), inputs(3, 4)
    kernel = empirical_ntk_fn(gated, trace_axes=(), implementation=0)(x, None, params)
    np.testing.assert_allclose(kernel, oracle(gated, x, None, params), rtol=1e-4, atol=1e-5)
    assert isinstance(measured[0]["structured_derivatives"].error, NotImplementedError)
    assert measured[0]["jacobian_contraction"].agrees


def test_auto_raises_the_error_of_structured_derivatives_if_all_fail():
    def f(params, x):
        raise ArithmeticError("of the model itself")

    with pytest.raises(ArithmeticError, match="of the model itself"):
        empirical_ntk_fn(f, implementation=0)(inputs(3, 4), None, fcn_params())


def test_auto_takes_structured_derivatives_for_symbolic_shapes(measured):
    ntk_fn = empirical_ntk_fn(fcn, vmap_axes=0, implementation=0)
    params = fcn_params()
    n1, n2 = jax.export.symbolic_shape("n1, n2")
    specs = [jax.ShapeDtypeStruct((n, 4), np.float32) for n in (n1, n2)]
    exported = jax.export.export(jax.jit(lambda x1, x2: ntk_fn(x1, x2, params)))(*specs)
    x1, x2 = inputs(3, 4), inputs(2, 4, seed=3)
    np.testing.assert_allclose(exported.call(x1, x2), ntk_fn(x1, x2, params), rtol=1e-5)
    assert len(measured) == 1


# The rest of neural-tangents


def test_batched_and_joint_kernels_of_neural_tangents():
    nt = import_neural_tangents()
    params, x1, x2 = fcn_params(), inputs(4, 4), inputs(2, 4, seed=3)
    ntk, nngp = oracle(fcn, x1, x2, params, trace_axes=(1,)), fcn(params, x1) @ fcn(params, x2).T / 3
    batched = nt.batch(jax.jit(empirical_ntk_fn(fcn, vmap_axes=0, implementation=3)), batch_size=2)
    np.testing.assert_allclose(batched(x1, x2, params), ntk, rtol=1e-4)
    np.testing.assert_allclose(nt.empirical_nngp_fn(fcn)(x1, x2, params), nngp, rtol=1e-4)
    kernel_fn = nt.empirical_kernel_fn(fcn, vmap_axes=0, implementation=3)
    both = jax.jit(lambda x1, x2: tuple(kernel_fn(x1, x2, ("nngp", "ntk"), params)))(x1, x2)
    for kernel, expected in zip(both, (nngp, ntk), strict=True):
        np.testing.assert_allclose(kernel, expected, rtol=1e-4)


def test_auto_of_neural_tangents_itself(capsys):
    ntk_fn = import_neural_tangents().empirical_ntk_fn(lambda w, x: x @ w, implementation=0)
    x = inputs(3, 4)
    np.testing.assert_allclose(ntk_fn(x, None, normal(0, 4, 2)), x @ x.T, rtol=1e-4)
    assert capsys.readouterr().out.count("flops=") == 3


def test_infinitely_wide_kernel_of_a_linear_network_is_its_empirical_kernel():
    stax = import_neural_tangents().stax
    init_fn, f, kernel_fn = stax.serial(stax.Flatten(), stax.Dense(3, W_std=1.5, b_std=0.5))
    x1, x2 = inputs(3, 2, 4), inputs(2, 2, 4, seed=3)
    _, params = init_fn(random.PRNGKey(0), x1.shape)
    kernel = jax.jit(empirical_ntk_fn(f, vmap_axes=0, implementation=3))(x1, x2, params)
    np.testing.assert_allclose(kernel, kernel_fn(x1, x2, "ntk"), rtol=1e-5)


def test_prediction_of_a_network_trained_to_the_end_is_kernel_regression():
    nt = import_neural_tangents()
    params = fcn_params((4, 64, 2))
    x_train, y_train, x_test = inputs(5, 4), inputs(5, 2, seed=3), inputs(3, 4, seed=4)
    ntk_fn = jax.jit(empirical_ntk_fn(fcn, vmap_axes=0, implementation=3))
    train_train, test_train = ntk_fn(x_train, None, params), ntk_fn(x_test, x_train, params)
    f_train, f_test = fcn(params, x_train), fcn(params, x_test)
    predict_fn = nt.predict.gradient_descent_mse(train_train, y_train)
    train, test = predict_fn(None, f_train, f_test, test_train)
    np.testing.assert_allclose(train, y_train, rtol=1e-5)
    weights = np.linalg.solve(np.asarray(train_train, np.float64), np.asarray(y_train - f_train, np.float64))
    np.testing.assert_allclose(test, f_test + test_train @ weights, rtol=1e-3, atol=1e-3)


def test_linearize():
    params, change, x = fcn_params(), jax.tree.map(jnp.ones_like, fcn_params()), inputs(3, 4)
    f_x, derivative = jax.jvp(lambda p: fcn(p, x), (params,), (change,))
    linear = import_neural_tangents().linearize(fcn, params)
    np.testing.assert_allclose(linear(jax.tree.map(jnp.add, params, change), x), f_x + derivative, rtol=1e-5)


def test_max_learning_rate():
    nt = import_neural_tangents()
    kernel = jnp.diag(jnp.array([1.0, 4.0]))
    assert nt.predict.max_learning_rate(kernel, y_train_size=2, eps=0.0) == pytest.approx(1.0)
