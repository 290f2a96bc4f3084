import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from exporter.compat.jax_names import enable_x64
from exporter.ntk.products import with_convolutions_as_products


@pytest.fixture(autouse=True)
def x64():
    with enable_x64():
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def values_and_gradients(fns, *args, cotangent):
    """Of each function fn(*args) and its vjp of the cotangent, all in one program."""

    @jax.jit
    def compute(*args):
        pairs = [jax.vjp(fn, *args) for fn in fns]
        return [(value, vjp(cotangent)) for value, vjp in pairs]

    return compute(*args)


def names(jaxpr):
    """Primitives of a jaxpr."""
    return {eqn.primitive.name for eqn in jaxpr.eqns}


CONVOLUTIONS = {
    "1d": ((2, 9, 3), (4, 3, 5), {"window_strides": (2,), "padding": [(1, 2)]}),
    "dense": ((2, 7, 6, 3), (3, 2, 3, 4), {"window_strides": (2, 1), "padding": [(1, 1), (0, 1)]}),
    "pointwise": ((2, 7, 6, 3), (1, 1, 3, 4), {"window_strides": (3, 2), "padding": [(0, 0), (0, 0)]}),
    "3d": ((1, 4, 5, 3, 2), (2, 3, 2, 2, 3), {"window_strides": (1, 2, 1), "padding": "SAME"}),
    "dilated": ((2, 9, 8, 2), (3, 3, 2, 3), {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 3)}),
    "transposed": (
        (2, 4, 3, 2),
        (3, 3, 2, 3),
        {"window_strides": (1, 1), "padding": [(1, 2), (2, 1)], "lhs_dilation": (2, 3)},
    ),
    "cropped": ((2, 7, 6, 2), (3, 3, 2, 3), {"window_strides": (2, 2), "padding": [(-1, -2), (-1, 3)]}),
    "depthwise": (
        (2, 6, 5, 4),
        (3, 3, 1, 4),
        {"window_strides": (1, 2), "padding": "SAME", "feature_group_count": 4},
    ),
    "depthwise twice": (
        (2, 6, 5, 4),
        (3, 3, 1, 8),
        {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4},
    ),
    "grouped": ((2, 6, 5, 6), (3, 3, 2, 9), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 3}),
    "kernel larger than data": ((2, 2, 2, 3), (5, 5, 3, 4), {"window_strides": (1, 1), "padding": "SAME"}),
}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        *zip(CONVOLUTIONS, itertools.cycle(["NHWC", "NCHW"])),
        *(("pointwise", "NCHW"), ("dilated", "NCHW"), ("transposed", "NHWC"), ("grouped", "NHWC")),
    ],
)
def test_the_same_value_and_derivatives(name, order):
    data, kernel, options = CONVOLUTIONS[name]
    spatial = "XYZ"[: len(data) - 2]
    first = order == "NCHW"
    layout = (f"NC{spatial}", f"OI{spatial}") if first else (f"N{spatial}C", f"{spatial}IO")
    a, w = normal(*data), normal(*kernel, seed=1)
    if first:
        a, w = np.moveaxis(a, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))

    def convolve(a, w):
        return lax.conv_general_dilated(a, w, dimension_numbers=(*layout, layout[0]), **options)

    def products(a, w):
        return with_convolutions_as_products(convolve)(a, w)

    assert "conv_general_dilated" not in names(jax.make_jaxpr(products)(a, w).jaxpr)
    cotangent = normal(*jax.eval_shape(convolve, a, w).shape, seed=2)
    (expected, gradients), (result, gradients_of_products) = values_and_gradients(
        [convolve, products], a, w, cotangent=cotangent
    )
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-13)
    for ours, theirs in zip(gradients_of_products, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_everything_else_stays_as_it_is():
    def fn(params, x):
        x = jax.nn.relu(lax.conv(x, params["w"], (1, 1), "SAME"))
        _, y = lax.scan(lambda c, row: (c + row, lax.cond(c.sum() > 0, jnp.sin, jnp.cos, row)), x[0, 0, 0], x[0, 0])
        return y * params["scale"]

    params, x = {"w": normal(2, 3, 3, 3), "scale": np.float64(3)}, normal(1, 3, 4, 5)
    np.testing.assert_allclose(with_convolutions_as_products(fn)(params, x), fn(params, x), rtol=1e-13)


def test_without_spatial_axes():
    def fn(a, w):
        return lax.conv_general_dilated(a, w, (), (), feature_group_count=3)

    a, w = normal(2, 6), normal(9, 2)
    np.testing.assert_allclose(with_convolutions_as_products(fn)(a, w), fn(a, w), rtol=1e-13)


def test_without_outputs():
    def fn(a, w):
        return lax.conv(a, w, (1, 1), "VALID")

    assert with_convolutions_as_products(fn)(normal(2, 3, 1, 1), normal(4, 3, 2, 2)).shape == (2, 4, 0, 0)
