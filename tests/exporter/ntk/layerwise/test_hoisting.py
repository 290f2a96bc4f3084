"""What does not depend on a function's arguments is computed outside of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from exporter.ntk.layerwise.hoisting import independent_first

W = jnp.arange(6.0).reshape(2, 3)
X = jnp.array([1.0, -2.0, 3.0])


def _sin_of(w):
    return lax.fori_loop(0, 2, lambda _, v: jnp.sin(v), w)


# By name: a function, and the primitives that are left to be done each time.
FUNCTIONS = {
    "all depends": (lambda x: jnp.cos(x) + 1.0, {"cos", "add"}),
    "nothing depends": (lambda x: jnp.sin(W), set()),
    "in part": (lambda x: x * jnp.sin(W), {"broadcast_in_dim", "mul"}),
    "a loop": (lambda x: (_sin_of(W) + 1.0) @ x, {"dot_general"}),
    "inside a jitted function": (jax.jit(lambda x: jnp.sin(W) @ jnp.cos(x)), {"cos", "dot_general"}),
    "repeated, then used": (lambda x: jnp.broadcast_to(jnp.sin(X), (4, 3)) @ x, {"broadcast_in_dim", "dot_general"}),
    "repeated twice": (
        lambda x: jnp.broadcast_to(jnp.broadcast_to(jnp.sin(X)[0], (3,)), (4, 3)) @ x,
        {"broadcast_in_dim", "dot_general"},
    ),
    "of what is repeated": (lambda x: jnp.sin(jnp.broadcast_to(X, (4, 3))) @ x, {"dot_general"}),
    "nothing but repeated": (lambda x: jnp.broadcast_to(X, (4, 3)), set()),
    "behind a barrier": (
        lambda x: jnp.multiply(*lax.optimization_barrier((jnp.sin(X), jnp.cos(x)))),
        {"cos", "mul"},
    ),
    "an argument as it is": (lambda x: x, set()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_the_function_without_what_is_known(name):
    fn, expected = FUNCTIONS[name]
    rest = independent_first(fn, jax.ShapeDtypeStruct(X.shape, X.dtype))
    np.testing.assert_array_equal(rest(X), fn(X))
    assert {eqn.primitive.name for eqn in jax.make_jaxpr(rest)(X).eqns} == expected


def test_what_is_repeated_is_not_kept():
    """But made again of what it repeats, which is smaller."""

    def fn(x):
        return jnp.broadcast_to(jnp.sin(X), (100, 3)) @ x

    rest = independent_first(fn, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert max(c.size for c in jax.make_jaxpr(rest)(X).consts) == 3


def test_inside_a_transformation():
    """As the engine uses it: of values that are themselves being traced."""

    def loop(w, xs):
        fn = independent_first(lambda x: jnp.sum(jnp.sin(w) * x), jax.ShapeDtypeStruct(X.shape, X.dtype))
        return lax.map(fn, xs)

    xs = jnp.stack([X, 2 * X])
    jaxpr = jax.make_jaxpr(loop)(X, xs)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["sin", "scan"]
    np.testing.assert_allclose(jax.jit(loop)(X, xs), [jnp.sum(jnp.sin(X) * x) for x in xs], rtol=1e-6)
