"""Derivatives by the kernels of depthwise convolutions: both forms are what JAX differentiates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from exporter.compat.jax_names import enable_x64
from exporter.ntk.layerwise import depthwise
from exporter.ntk.layerwise.convolution import by_xla
from exporter.ntk.layerwise.window import Window


def random_window(rng, rank):
    def draw(low, high):
        return tuple(int(v) for v in rng.integers(low, high, rank))

    padding = tuple(tuple(int(v) for v in rng.integers(-1, 3, 2)) for _ in range(rank))
    return Window(draw(4, 20), draw(1, 4), draw(1, 3), draw(1, 3), draw(1, 3), padding)


@pytest.mark.parametrize("form", [depthwise.by_products, depthwise.by_sums])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_any_depthwise_convolution(form, rank, seed):
    rng = np.random.default_rng((rank, seed))
    window, channels, multiplier, outputs = random_window(rng, rank), 3, 1 + seed % 2, 2
    a = rng.normal(size=(2, *window.inputs, channels))
    d = rng.normal(size=(outputs, 2, *window.outputs, channels, multiplier))
    w = np.zeros((*window.kernel, 1, channels * multiplier))
    with enable_x64():
        options = (("precision", lax.Precision.HIGHEST), ("preferred_element_type", None))
        _, vjp = jax.vjp(lambda w: by_xla(window, channels, options, jnp.asarray(a), w), jnp.asarray(w))
        (expected,) = jax.vmap(vjp)(d.reshape(*d.shape[:-2], -1))
        got = jax.jit(form, static_argnums=0)(window, a, d)
    assert got.shape == (outputs, *window.kernel, channels, multiplier)
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-12 * max(1.0, np.abs(expected).max()))


def test_no_positions():
    window = Window((2, 2), (3, 3), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    assert 0 in window.outputs
    got = depthwise.by_sums(window, jnp.ones((1, 2, 2, 4)), jnp.ones((5, 1, *window.outputs, 4, 1)))
    np.testing.assert_array_equal(got, np.zeros((5, 3, 3, 4, 1)))


def test_half_precision_is_added_up_in_float32():
    """Of 4,096 products of 1 a sum in bfloat16 would stay at 256."""
    window = Window((4096,), (1,), (1,), (1,), (1,), ((0, 0),))
    ones = jnp.ones((1, 4096, 2), jnp.bfloat16)
    got = depthwise.by_sums(window, ones, ones[..., None][None])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got, np.float32), 4096.0)


def test_no_patches_and_no_product_for_each_channel():
    window = Window((16, 16), (5, 5), (1, 1), (1, 1), (1, 1), ((2, 2), (2, 2)))
    a, d = (jax.ShapeDtypeStruct((*lead, 16, 16, 8, *last), np.float32) for lead, last in (((1,), ()), ((3, 1), (1,))))
    text = jax.jit(depthwise.by_sums, static_argnums=0).lower(window, a, d).compile().as_text()
    assert " dot(" not in text
    patches = math.prod((*window.outputs, *window.kernel, 8))
    sizes = [math.prod(map(int, shape.split(","))) for shape in _shapes(text)]
    assert max(sizes) < patches


def _shapes(text):
    return (part.split("]")[0] for part in text.split("f32[")[1:] if not part.startswith("]"))
