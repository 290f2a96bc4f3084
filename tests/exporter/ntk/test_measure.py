import time

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from exporter.ntk.measure import Measurement, fastest, measure_implementations, shapes_key


def square(x):
    return {"y": x * x}


def slow_square(x):
    def sleep(x):
        time.sleep(0.02)
        return x

    return {"y": x * jax.pure_callback(sleep, x, x)}


def slightly_wrong_square(x):
    return {"y": x * x * 1.001}


def fails(x):
    raise NotImplementedError("no rule for this primitive")


def test_times_compares_and_reports_failures():
    x = jnp.array([1.0, -4.0])
    fns = {"slow": slow_square, "fast": square, "wrong": slightly_wrong_square, "fails": fails}
    measured = measure_implementations(fns, (x,))
    assert list(measured) == list(fns)
    assert measured["fast"].bytes >= x.nbytes
    assert 0.0 < measured["fast"].seconds < 0.02 <= measured["slow"].seconds
    assert measured["slow"].deviation == 0.0
    assert measured["fast"].agrees
    assert measured["wrong"].deviation == pytest.approx(1e-3, rel=1e-3)
    assert not measured["wrong"].agrees
    assert measured["fails"].seconds is None
    assert str(measured["fails"].error) == "no rule for this primitive"


def test_integers_must_be_equal():
    """As the indices among an embedding's features."""
    fns = {"right": lambda x: x + 1, "too": lambda x: 1 + x, "wrong": lambda x: x + 2}
    measured = measure_implementations(fns, (jnp.arange(1000),))
    assert [m.agrees for m in measured.values()] == [True, True, False]


def test_fastest_is_the_fastest_of_those_that_agree():
    measured = {
        "reference": Measurement(3.0, 0.0, agrees=True),
        "agrees": Measurement(2.0, 1e-6, agrees=True),
        "wrong": Measurement(1.0, 1e-2, agrees=False),
        "fails": Measurement(None, float("nan"), agrees=False, error=ValueError()),
    }
    assert fastest(measured) == "agrees"


def test_the_first_that_runs_is_the_reference():
    measured = measure_implementations(
        {"fails": fails, "wrong": slightly_wrong_square, "right": square}, (jnp.ones(2),)
    )
    assert measured["wrong"].agrees
    assert not measured["right"].agrees
    assert fastest(measured) == "wrong"


def test_raises_the_first_error_if_nothing_runs():
    def fails_too(x):
        raise ValueError("nor does this one run")

    with pytest.raises(NotImplementedError, match="no rule for this primitive"):
        fastest(measure_implementations({"a": fails, "b": fails_too}, (jnp.ones(2),)))


def test_results_that_are_not_finite_leave_the_reference():
    def overflows(x):
        return x / 0.0

    measured = measure_implementations({"slow": lambda x: overflows(x) + 0.0, "fast": overflows}, (jnp.ones(2),))
    assert not measured["slow"].agrees
    assert np.isnan(measured["fast"].deviation)
    assert fastest(measured) == "slow"


def test_tolerance_follows_the_dtype():
    fns = {"a": lambda x: x, "b": lambda x: x * jnp.asarray(1.01, x.dtype)}
    assert measure_implementations(fns, (jnp.ones(2, jnp.bfloat16),))["b"].agrees
    assert not measure_implementations(fns, (jnp.ones(2, jnp.float32),))["b"].agrees


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_measures_under_a_trace(transform):
    shapes = []

    def fn(x, n, flag, key):
        shapes.append(x.shape)
        noise = jax.random.normal(key, x.shape)
        return jnp.where(flag, jnp.take(x, n, axis=0) + noise, 0.0)

    def traced(x, n, flag, key):
        measured = measure_implementations({"a": fn, "b": fn}, (x, n, flag, key))
        assert measured["a"].seconds > 0.0
        assert measured["b"].deviation == 0.0
        return x

    batch = (jnp.ones((2, 3, 4)), jnp.ones((2, 3), jnp.int32), jnp.ones(2, bool), jax.random.split(jax.random.key(0)))
    args = batch if transform is jax.vmap else jax.tree.map(lambda a: a[0], batch)
    np.testing.assert_array_equal(transform(traced)(*args), args[0])
    assert set(shapes) == {(3, 4)}


def test_random_values_keep_deep_networks_finite():
    def network(params, x):
        for kernel, scale in params:
            x = jnp.maximum(x @ kernel, 0.0) * jax.lax.rsqrt(scale)
        return x

    spec = jax.ShapeDtypeStruct
    params = [(spec((256, 256), np.float32), spec((256,), np.float32))] * 60
    measured = measure_implementations({"a": network}, (params, spec((4, 256), np.float32)))
    assert measured["a"].agrees


def test_shapes_key_tells_structures_shapes_and_dtypes_apart():
    x = np.ones((2, 3), np.float32)
    different = [x, [x], x.T, x.astype(np.int32), (x, None), (None, x), {"a": x}]
    assert len({shapes_key(args) for args in different}) == len(different)
    assert shapes_key(x) == shapes_key(jnp.zeros((2, 3)))


def test_shapes_key_of_symbolic_shapes_is_none():
    keys = []
    (n,) = jax.export.symbolic_shape("n")
    jax.export.export(jax.jit(lambda x: keys.append(shapes_key(x)) or x))(jax.ShapeDtypeStruct((n, 3), np.float32))
    assert keys == [None]
