import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exporter.compat.jax_names import enable_x64
from exporter.ntk.precision import in_float64


@pytest.fixture(autouse=True)
def x64():
    with enable_x64():
        yield


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def dtypes_of(jaxpr):
    """Every dtype of a value in a jaxpr, its constants, and the jaxprs within."""
    dtypes = {np.dtype(v.aval.dtype) for v in (*jaxpr.constvars, *jaxpr.invars, *jaxpr.outvars)}
    for eqn in jaxpr.eqns:
        dtypes |= {np.dtype(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars)}
        for param in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                dtypes |= dtypes_of(inner)
    return dtypes


NARROW = {np.dtype(jnp.bfloat16), np.dtype(np.float16), np.dtype(np.float32)}


def network(params, x):
    """Dense layers with activations, a normalisation, and dtypes that are named in the code."""
    for kernel in params:
        x = jax.nn.gelu(x @ kernel)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + np.float32(1e-3))
        x = jnp.asarray(x, jnp.float32) + jnp.zeros(x.shape[-1:], jnp.float32)
    return jax.nn.log_softmax(x)


def network_in_numpy(params, x):
    for kernel in params:
        y = x @ kernel
        y = y * 0.5 * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (y + np.float32(0.044715) * y**3)))
        x = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + np.float32(1e-3).astype(np.float64))
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_equals_the_function_written_in_float64():
    params, x = [normal(5, 6), normal(6, 4, seed=1)], normal(3, 5, seed=2)
    result = jax.jit(in_float64(network, params, x))(params, x)
    expected = network_in_numpy([p.astype(np.float64) for p in params], x.astype(np.float64))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-14)
    assert np.max(np.abs(network(params, x) - expected)) > 1e-9  # which float32 does not reach


def test_nothing_narrow_is_left():
    params, x = [normal(5, 6), normal(6, 4, seed=1)], normal(3, 5, seed=2)
    gradient = jax.grad(lambda p, x: in_float64(network, params, x)(p, x).sum())
    wide = [p.astype(np.float64) for p in params]
    assert not dtypes_of(jax.make_jaxpr(gradient)(wide, x.astype(np.float64)).jaxpr) & NARROW
    assert dtypes_of(jax.make_jaxpr(network)(params, x).jaxpr) & NARROW


def test_constants_keep_their_float32_value():
    fn = in_float64(lambda x: x * np.float32(0.1) + jnp.asarray([0.3], jnp.float32), normal(1))
    np.testing.assert_array_equal(fn(np.ones(1)), [float(np.float32(0.1)) + float(np.float32(0.3))])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_becomes_float64(dtype):
    x = np.asarray([1.0, 2.0, 3.0], dtype)
    fn = in_float64(lambda x: (x / 3).astype(jnp.float32) / 7, x)
    np.testing.assert_allclose(fn(x), np.array([1.0, 2.0, 3.0]) / 21, rtol=1e-15)


def test_rounding_to_a_narrower_type_is_gone():
    fn = in_float64(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), normal(1))
    np.testing.assert_array_equal(fn(np.array([1 / 3])), [1 / 3])


def test_integers_and_booleans_stay():
    x = np.arange(4, dtype=np.int32)
    number, flag, value = in_float64(lambda x: (x + 1, x > 1, jnp.float32(x) / 3), x)(x)
    assert (number.dtype, flag.dtype, value.dtype) == (np.int32, np.bool_, np.float64)
    np.testing.assert_array_equal(value, np.arange(4) / 3)


def test_wide_integers_are_those_of_the_trace():
    x = np.arange(4, dtype=np.int64)
    np.testing.assert_array_equal(in_float64(lambda x: jnp.float32(x + jnp.int32(1)), x)(x), np.arange(1, 5))


def test_custom_derivatives_are_kept():
    """The derivative of relu at 0 is 0 by its rule; that of the maximum it is made of would be 1/2."""
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    gradient = jax.grad(lambda x: in_float64(jax.nn.relu, x)(x).sum())
    np.testing.assert_array_equal(gradient(x.astype(np.float64)), [0, 0, 1])
    np.testing.assert_array_equal(jax.jit(gradient)(x.astype(np.float64)), [0, 0, 1])
    tangent = jax.jvp(in_float64(jax.nn.relu, x), (x.astype(np.float64),), (np.ones(3),))[1]
    np.testing.assert_array_equal(tangent, [0, 0, 1])


def test_custom_derivative_with_constants_and_zero_tangents():
    scale = jnp.asarray(normal(3))

    @jax.custom_jvp
    def scaled(x, y):
        return scale * x, jnp.round(y)

    @scaled.defjvp
    def rule(primals, tangents):
        outs = scaled(*primals)
        return outs, (scale * tangents[0] * 7, jnp.zeros_like(outs[1]))

    x, y = normal(3, seed=1), normal(3, seed=2)
    fn = in_float64(scaled, x, y)
    outs, tangents = jax.jvp(fn, (x.astype(np.float64), y.astype(np.float64)), (np.ones(3), np.ones(3)))
    np.testing.assert_allclose(outs[0], scale.astype(np.float64) * x, rtol=1e-15)
    np.testing.assert_allclose(tangents[0], 7 * scale.astype(np.float64), rtol=1e-15)
    np.testing.assert_array_equal(tangents[1], np.zeros(3))


def test_custom_derivative_under_vmap_and_twice():
    x = normal(4)
    second = jax.vmap(jax.grad(jax.grad(in_float64(jax.nn.silu, x[0]))))
    s = 1 / (1 + np.exp(-x.astype(np.float64)))
    expected = s * (1 - s) * (2 + x * (1 - 2 * s))
    np.testing.assert_allclose(second(x.astype(np.float64)), expected, rtol=1e-12)


# Written for any dtype, with constants that all of them hold: so a call in float64 is what float64 should give.


def scans(x):
    return jax.lax.scan(lambda c, a: (jnp.tanh(c + a), c * x.dtype.type(0.125)), x[0], x)


def loops(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1]) / 3), (0, x))[1]


def counts(x):
    return jax.lax.fori_loop(0, 4, lambda i, c: c / 3 + i, x)


def branches(x):
    return jax.lax.cond(x.sum() > 0, lambda x: x / 3, lambda x: x / 7, x)


def switches(x):
    return jax.lax.switch(2, [lambda x: x, lambda x: x + 1, lambda x: jnp.sqrt(x * x + x.dtype.type(0.125))], x)


def nests(x):
    return jax.jit(lambda x: jax.checkpoint(jax.jit(lambda x: jnp.exp(x) / 3))(x) * x.dtype.type(0.125))(x)


def reduces(x):
    window = jax.lax.reduce_window(x, x.dtype.type(-np.inf), jax.lax.max, (2, 2), (1, 1), "SAME")
    return window.sum() + jnp.argmax(x).astype(x.dtype) / 3 + jax.lax.cumsum(x).mean() + jnp.sort(x).prod()


def multiplies(x):
    product = jnp.einsum("ij,kj->ik", x, x, preferred_element_type=x.dtype)
    kernel = jnp.full((2, 2, 1, 3), x.dtype.type(0.125))
    dims = ("NHWC", "HWIO", "NHWC")
    return product.sum() + jax.lax.conv_general_dilated(
        x[None, :, :, None], kernel, (1, 1), "SAME", dimension_numbers=dims
    )


def scans_with_a_custom_rule(x):
    return jax.lax.scan(lambda c, a: (jax.nn.relu(c - a), a), x[0], x)[0]


@pytest.mark.parametrize(
    "fn",
    [scans, loops, counts, branches, switches, nests, reduces, multiplies, scans_with_a_custom_rule],
    ids=lambda fn: fn.__name__,
)
def test_control_flow_and_nested_programs(fn):
    x = normal(4, 3)
    wide = in_float64(fn, x)
    jaxpr = jax.make_jaxpr(wide)(x.astype(np.float64)).jaxpr
    assert not dtypes_of(jaxpr) & NARROW
    for value, exact in zip(jax.tree.leaves(wide(x)), jax.tree.leaves(fn(x.astype(np.float64))), strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, exact, rtol=1e-14, atol=1e-15)


def test_scan_equals_a_loop_in_numpy():
    x = normal(50, 3)
    carry, _ = in_float64(scans, x)(x)
    expected = x[0].astype(np.float64)
    for row in x.astype(np.float64):
        expected = np.tanh(expected + row)
    np.testing.assert_allclose(carry, expected, rtol=1e-14)


@pytest.mark.parametrize("fn", [scans, branches, nests, scans_with_a_custom_rule], ids=lambda fn: fn.__name__)
def test_derivatives_equal_finite_differences(fn):
    x = normal(4, 3)

    def total(x):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(in_float64(fn, normal(4, 3))(x)))

    direction, step = normal(4, 3, seed=1).astype(np.float64), 1e-6
    gradient = jnp.vdot(jax.grad(total)(x.astype(np.float64)), direction)
    difference = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(gradient, difference, rtol=1e-8)


def test_function_written_for_float64_stays_as_it_is():
    x = normal(3, dtype=np.float64)
    np.testing.assert_array_equal(in_float64(lambda x: x / 3, x)(x), x / 3)


def test_structure_of_arguments_and_results_is_kept():
    args = ({"a": normal(2), "b": (normal(2), np.int32(3))}, None)
    result = in_float64(lambda p, _: {"sum": p["a"] + p["b"][0], "n": [p["b"][1]]}, *args)(*args)
    assert set(result) == {"sum", "n"}
    assert result["sum"].dtype == np.float64
    assert result["n"][0] == 3


def test_batch_sizes_may_differ_from_the_specification():
    fn = in_float64(lambda x: x / 3, jax.ShapeDtypeStruct((2, 5), np.float32))
    assert fn(np.ones((7, 5))).shape == (7, 5)
