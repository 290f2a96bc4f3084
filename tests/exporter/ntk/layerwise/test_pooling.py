"""Maxima over windows: the derivative goes to where the first of the largest is."""

import functools

import jax
import numpy as np
import pytest
from jax import lax

from exporter.ntk.layerwise import lowering

PADDING = ((1, 0), (0, 2))


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 2), (2, 3), (3, 1), (4, 3)])
def test_derivative(size, stride, dilation):
    rng = np.random.default_rng((size, stride, dilation))
    a = rng.integers(0, 9, (11, 12)).astype(np.float32)  # with equal ones
    maximum = functools.partial(
        lax.reduce_window,
        init_value=-np.inf,
        computation=lax.max,
        window_dimensions=(size, size),
        window_strides=(stride, stride),
        window_dilation=(dilation, dilation),
        padding=PADDING,
    )
    (eqn,) = jax.make_jaxpr(maximum)(a).jaxpr.eqns
    assert eqn.primitive.name == "reduce_window_max"
    d = rng.integers(-9, 9, (2, *jax.eval_shape(maximum, a).shape)).astype(np.float32)

    @jax.jit
    def ours(a, d):
        y, vjp = jax.vjp(lambda a: lowering.CPU.bind(eqn, [a])[0], a)
        return y, jax.vmap(lambda d: vjp(d)[0])(d)

    y, received = ours(a, d)
    np.testing.assert_array_equal(y, maximum(a))
    padded, expected = np.pad(a, PADDING, constant_values=-np.inf), np.zeros((2, *np.add(a.shape, np.sum(PADDING, 1))))
    for at in np.ndindex(*y.shape):
        rows, columns = (range(k * stride, k * stride + size * dilation, dilation) for k in at)
        under = padded[np.ix_(rows, columns)]
        row, column = np.unravel_index(np.argmax(under), under.shape)
        expected[:, rows[row], columns[column]] += d[:, *at]
    np.testing.assert_array_equal(received, expected[:, 1:, :-2])
