"""Convolutions in the forms that XLA is fast at on CPUs: the same as its own, and so are their derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from exporter.compat.jax_names import enable_x64
from exporter.ntk.layerwise import lowering
from exporter.ntk.layerwise.analysis import Sort, Trace
from exporter.ntk.layerwise.convolution import bind_channels_last, by_xla, transposed_by_xla
from exporter.ntk.layerwise.engine import LayerwiseParts
from exporter.ntk.layerwise.patches import fold, folds
from exporter.ntk.layerwise.window import Window
from exporter.ntk.measure import bytes_of_program


def equation(rng, rank, *, groups=1, at_least=3, kernel_at_least=1, **given):
    """A random convolution's equation of one group or several, and values of its inputs."""

    def draw(low, high):
        return tuple(int(v) for v in rng.integers(low, high, rank))

    options = {
        "window_strides": draw(1, 3),
        "padding": [tuple(int(v) for v in rng.integers(-1, 4, 2)) for _ in range(rank)],
        "lhs_dilation": draw(1, 4),
        "rhs_dilation": draw(1, 3),
    } | given
    spatial = "DHW"[-rank:]
    orders = [
        ("N" + spatial + "C", spatial + "IO", "NC" + spatial),
        ("NC" + spatial, "OI" + spatial, "N" + spatial + "C"),
    ]
    names = orders[rng.integers(2)]
    sizes = dict(zip(spatial, draw(at_least, at_least + 4), strict=True)) | {"N": 2, "C": 2 * groups}
    kernel = dict(zip(spatial, draw(kernel_at_least, 5), strict=True)) | {"I": 2, "O": 3 * groups}
    a = rng.normal(size=[sizes[axis] for axis in names[0]])
    w = rng.normal(size=[kernel[axis] for axis in names[1]])

    def convolve(a, w):
        return lax.conv_general_dilated(
            a, w, dimension_numbers=names, feature_group_count=groups, precision="highest", **options
        )

    (eqn,) = jax.make_jaxpr(convolve)(a, w).jaxpr.eqns
    return eqn, convolve, a, w


def assert_the_same(eqn, convolve, a, w):
    """In values and in derivatives with respect to the data."""
    d = np.random.default_rng(0).normal(size=jax.eval_shape(convolve, a, w).shape)
    elsewhere = functools.partial(bind_channels_last, by_xla, transposed_by_xla)

    @jax.jit
    def both(a, d):
        return [
            (y, vjp(d)[0])
            for y, vjp in (
                jax.vjp(fn, a)
                for fn in (
                    lambda a: convolve(a, w),
                    lambda a: lowering.CPU.bind(eqn, [a, w])[0],
                    lambda a: elsewhere(eqn, [a, w])[0],
                )
            )
        ]

    want, *ours = both(a, d)
    for got in ours:
        for right, value in zip(want, got, strict=True):
            np.testing.assert_allclose(value, right, atol=1e-12 * max(1.0, np.abs(right).max(initial=0.0)))


@pytest.fixture(autouse=True)
def double():
    with enable_x64():
        yield


def with_outputs(rng, *args, **kwargs):
    """An equation with outputs at some positions, of those drawn one after the other."""
    while True:
        drawn = equation(rng, *args, **kwargs)
        if min(Window.of(drawn[0]).outputs) > 0:
            return drawn


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_any_convolution(rank, groups, seed):
    assert_the_same(*with_outputs(np.random.default_rng([rank, groups, seed]), rank, groups=groups))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_derivatives_of_few_positions_take_the_kernel_as_it_is(rank, seed):
    """In no other order: for these, reordering it takes longer than the products."""
    drawn = with_outputs(np.random.default_rng([rank, seed]), rank, lhs_dilation=(1,) * rank, kernel_at_least=2)
    assert_the_same(*drawn)
    eqn, convolve, a, w = drawn
    d = jnp.zeros(jax.eval_shape(convolve, a, w).shape)
    text = jax.jit(lambda a, d: jax.vjp(lambda a: lowering.CPU.bind(eqn, [a, w])[0], a)[1](d)).lower(a, d).as_text()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.reverse" not in text


@pytest.mark.parametrize("stretched", ["lhs_dilation", "window_strides"])
@pytest.mark.parametrize("seed", range(2))
def test_stretched_data_of_many_positions(stretched, seed):
    """As of transposed convolutions, and of the derivatives of those with strides: each phase by XLA's own."""
    rng = np.random.default_rng(seed)
    plain = {"window_strides": (1, 1), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    sizes = tuple(int(v) for v in rng.integers(2, 4, 2))
    drawn = with_outputs(rng, 2, at_least=36, **plain | {stretched: sizes})
    assert_the_same(*drawn)
    eqn, _, a, w = drawn
    assert "stablehlo.convolution" in jax.jit(lambda a: lowering.CPU.bind(eqn, [a, w])[0]).lower(a).as_text()


def derivative(fn, a, d):
    """The program of the derivative of fn at a, of the cotangent d."""
    return jax.jit(lambda d: jax.vjp(fn, a)[1](d)[0]).lower(d).as_text()


def test_derivatives_of_strides_are_of_the_data_itself():
    """No zeros between the data are multiplied, and a kernel of one tap is one convolution."""

    def convolve(a, w):
        return lax.conv_general_dilated(a, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    a = jnp.ones((1, 40, 40, 2))
    for size, expected in ((3, 4), (1, 1)):
        w = jnp.ones((size, size, 2, 3))
        (eqn,) = jax.make_jaxpr(convolve)(a, w).jaxpr.eqns
        d = jnp.ones((1, 20, 20, 3))
        assert "lhs_dilate = [2, 2]" in derivative(lambda a, w=w: convolve(a, w), a, d)  # as XLA's own has it
        ours = derivative(lambda a, eqn=eqn, w=w: lowering.CPU.bind(eqn, [a, w])[0], a, d)
        assert set(re.findall(r"lhs_dilate = (\[.*?\])", ours)) == {"[1, 1]"}
        assert ours.count("stablehlo.convolution") == expected


def test_three_axes_by_convolutions_of_two():
    def convolve(a, w):
        return lax.conv_general_dilated(a, w, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    a, w = jnp.ones((1, 8, 8, 8, 2)), jnp.ones((3, 3, 3, 2, 4))
    (eqn,) = jax.make_jaxpr(convolve)(a, w).jaxpr.eqns
    text = jax.jit(lambda a: lowering.CPU.bind(eqn, [a, w])[0]).lower(a).as_text()
    assert re.findall(r"dim_numbers = \[([^\]]*)\]x", text) == ["b, 0, 1, f"] * 3


@pytest.mark.parametrize("names", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC"), ("NHWC", "OHWI", "NCHW")])
def test_one_tap_is_a_product_of_matrices(names):
    rng = np.random.default_rng(0)
    sizes = {"N": 2, "H": 4, "W": 5, "C": 3} | {"O": 6, "I": 3}
    a = rng.normal(size=[sizes[axis] for axis in names[0]])
    w = rng.normal(size=[{**sizes, "H": 1, "W": 1}[axis] for axis in names[1]])

    def convolve(a, w):
        return lax.conv_general_dilated(a, w, (1, 1), "VALID", dimension_numbers=names, precision="highest")

    (eqn,) = jax.make_jaxpr(convolve)(a, w).jaxpr.eqns
    assert_the_same(eqn, convolve, a, w)
    program = jax.jit(jax.grad(lambda a: jnp.sum(lowering.CPU.bind(eqn, [a, w])[0] ** 2))).lower(a).as_text()
    assert program.count("stablehlo.dot_general") == 2
    assert "stablehlo.convolution" not in program


@pytest.mark.parametrize(
    ("size", "stride", "taps"), [(1, 1, range(2, 3)), (2, 1, range(1, 4)), (2, 2, range(2, 4)), (5, 1, range(5))]
)
def test_taps_over_padding_are_left_out(size, stride, taps):
    """Of the last layers of models for small images 16 or 24 of 25 are, at a slice and a product each."""
    a, w = np.random.default_rng(0).normal(size=(1, size, size, 3)), np.ones((5, 5, 1, 3))

    def convolve(a, w):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            a, w, (stride, stride), [(2, 2)] * 2, dimension_numbers=dims, feature_group_count=3
        )

    (eqn,) = jax.make_jaxpr(convolve)(a, w).jaxpr.eqns
    first, window = Window.of(eqn).met(0)
    assert range(first, first + window.kernel[0]) == taps
    assert_the_same(eqn, convolve, a, w)
    program = jax.jit(lambda a: lowering.CPU.bind(eqn, [a, w])[0]).lower(a).as_text()
    assert program.count("stablehlo.multiply") == len(taps) ** 2


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gathered_patches(rank, groups):
    rng = np.random.default_rng([rank, groups])
    for _ in range(2):
        eqn, _, a, _ = with_outputs(rng, rank, groups=groups)
        np.testing.assert_array_equal(
            *jax.jit(lambda a, eqn=eqn: (lowering.CPU.patches(eqn, a), lowering.DEFAULT.patches(eqn, a)))(a)
        )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_products_of_positions_folded_onto_the_data(rank, groups):
    """They give, between the data of two examples, what they give between their patches."""
    rng = np.random.default_rng([rank, groups])
    for _ in range(2):
        eqn, _, a, _ = with_outputs(rng, rank, groups=groups, lhs_dilation=(1,) * rank)
        b = rng.normal(size=a.shape)
        compiled = jax.jit(functools.partial(lowering.DEFAULT.patches, eqn))
        under = [compiled(v) for v in (a, b)]
        products = rng.normal(size=(2, groups, *[under[0].shape[1]] * 2))
        want = np.einsum("gti,kgtu,gui->k", under[0], products, under[1])
        compiled = jax.jit(functools.partial(fold, eqn))
        (left, folded), (right, _) = (compiled(v, products) for v in (a, b))
        np.testing.assert_allclose(np.einsum("gxc,kgxy,gyc->k", left, folded, right), want, atol=1e-11)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"window_strides": (2, 2)}, False),
        ({"window_strides": (1, 2)}, True),
        ({"lhs_dilation": (2, 1)}, False),
    ],
)
def test_products_are_folded_where_that_is_cheaper(given, expected):
    def convolve(a, w):
        options = {"window_strides": (1, 1), "padding": [(1, 1), (1, 1)]} | given
        return lax.conv_general_dilated(a, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    (eqn,) = jax.make_jaxpr(convolve)(jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 4))).jaxpr.eqns
    assert folds(eqn) is expected


def test_bias_of_a_convolution_takes_the_kept_derivative():
    """Of the second: that of the first convolution, of inputs, has no further use."""

    def model(trainable, frozen, x):
        for w, b in (("w", "b"), ("v", "a")):
            y = lax.conv_general_dilated(x, trainable[w], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jnp.tanh(y + trainable[b])
        return x.sum((1, 2))

    shapes = {"w": (3, 3, 2, 8), "b": (8,), "v": (3, 3, 8, 8), "a": (8,)}
    trainable = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((1, 32, 32, 2), jnp.float32)
    jaxpr = jax.make_jaxpr(model)(trainable, {}, x)
    trace = Trace(jaxpr, [None] * 4 + [Sort.DATA], lowering.CPU)
    assert [v.aval.shape for v in trace.materialized] == [(1, 28, 28, 8)]
    (addition,) = (eqn for eqn in jaxpr.eqns if eqn.outvars[0] in trace.materialized)
    assert addition.primitive.name == "add"


def test_large_patches_are_in_memory_one_layer_after_the_other():
    """Of 7×7 taps at 56×56 positions with 32 channels they take 20 MB; a ConvNeXt has three times as many."""
    params = {f"w{k}": jax.ShapeDtypeStruct((7, 7, 1, 32), jnp.float32) for k in range(4)}
    x = (jax.ShapeDtypeStruct((1, 56, 56, 32), jnp.float32),)

    def apply_fn(p, s, x):
        y = x[0]
        for w in p.values():
            y = jnp.tanh(
                lax.conv_general_dilated(
                    y, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=32
                )
            )
        return y.mean((1, 2))[:, :2]

    parts = LayerwiseParts(apply_fn, params, {}, x, counts=(4, 4), trace_axes=(1,), diagonal_axes=())
    patches = 4 * 49 * 56 * 56 * 32
    assert bytes_of_program(parts.features, params, {}, x) < 2.5 * patches
