"""Convolutions in the forms that XLA is fast at on CPUs: the same as its own, and so are their derivatives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import enable_x64

from exporter.ntk.layerwise.convolution import Window, bind_on_cpu


def equation(rng, rank, *, groups=1, **given):
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
    sizes = dict(zip(spatial, draw(3, 7), strict=True)) | {"N": 2, "C": 2 * groups}
    kernel = dict(zip(spatial, draw(1, 5), strict=True)) | {"I": 2, "O": 3 * groups}
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

    @jax.jit
    def both(a, d):
        return [
            (y, vjp(d)[0])
            for y, vjp in (jax.vjp(lambda a: convolve(a, w), a), jax.vjp(lambda a: bind_on_cpu(eqn, [a, w])[0], a))
        ]

    for want, got in zip(*both(a, d), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12 * max(1.0, np.abs(want).max(initial=0.0)))


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_any_convolution(rank, groups, seed):
    assert_the_same(*with_outputs(np.random.default_rng([rank, groups, seed]), rank, groups=groups))


@pytest.mark.parametrize("kernel_of", ["strides", "stretches"])
@pytest.mark.parametrize("seed", range(4))
def test_stretched_data_of_many_positions(kernel_of, seed):
    """As of transposed convolutions, and of the derivatives of those with strides: where XLA's own is used."""
    rng = np.random.default_rng(seed)
    name, other = ("window_strides", "lhs_dilation") if kernel_of == "strides" else ("lhs_dilation", "window_strides")
    sizes = tuple(int(v) for v in rng.integers(2, 4, 2))
    given = {name: sizes, other: (1, 1), "rhs_dilation": (1, 1), "padding": [(6, 5), (3, 8)]}
    eqn, convolve, a, w = with_outputs(rng, 2, **given)
    assert_the_same(eqn, convolve, a, w)


def convolutions(fn, *args):
    """The sizes of dilated data and numbers of spatial axes of the convolutions in a function's program."""
    text = jax.jit(fn).lower(*args).as_text()
    found = re.findall(r"stablehlo\.convolution.*?lhs_dilate = \[([\d, ]*)\].*?:", text)
    plain = re.findall(r"stablehlo\.convolution", text)
    return [tuple(map(int, sizes.split(", "))) for sizes in found], len(plain)


def test_derivatives_of_strides_are_of_the_data_itself():
    """No zeros between the data are multiplied, and a kernel of one tap is one convolution."""

    def convolve(a, w):
        return lax.conv_general_dilated(a, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    a = jnp.ones((1, 40, 40, 2))
    for size, expected in ((3, 4), (1, 1)):
        w = jnp.ones((size, size, 2, 3))
        (eqn,) = jax.make_jaxpr(convolve)(a, w).jaxpr.eqns
        d = jnp.ones((1, 20, 20, 3))
        _, vjp = jax.vjp(lambda a, eqn=eqn, w=w: bind_on_cpu(eqn, [a, w])[0], a)
        stretched, count = convolutions(lambda d, vjp=vjp: vjp(d)[0], d)
        assert all(sizes == (1, 1) for sizes in stretched)
        assert count == expected


def test_three_axes_by_convolutions_of_two():
    def convolve(a, w):
        return lax.conv_general_dilated(a, w, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    a, w = jnp.ones((1, 8, 8, 8, 2)), jnp.ones((3, 3, 3, 2, 4))
    (eqn,) = jax.make_jaxpr(convolve)(a, w).jaxpr.eqns
    text = jax.jit(lambda a: bind_on_cpu(eqn, [a, w])[0]).lower(a).as_text()
    assert re.findall(r"dim_numbers = \[([^\]]*)\]x", text) == ["b, 0, 1, f"] * 3
