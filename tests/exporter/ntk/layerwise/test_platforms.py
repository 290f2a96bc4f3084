"""Programs for all platforms of one trace: each has its own operations, and all the same kernel."""

import jax
import numpy as np
import pytest
from jax import export
from layerwise_cases import CASES, make

from exporter.ntk.layerwise import lowering, rules
from exporter.ntk.layerwise.engine import LayerwiseParts
from exporter.ntk.layerwise.platforms import on_platform
from exporter.ntk.reference import reference_ntk

AXES = {"trace_axes": (1,), "diagonal_axes": ()}


def parts_of(name):
    """The kernel of a case in parts, traced for all platforms, and its arguments."""
    fn, params, frozen, x, _ = make(CASES[name])
    return LayerwiseParts(fn, params, frozen, x, counts=(4, 4), **AXES), (params, frozen, x)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("conv", "depthwise", "max", "scan"))])
def test_both_are_the_kernel(name, elsewhere, monkeypatch):
    if elsewhere:  # what is for other platforms is evaluated here too
        monkeypatch.setattr(lowering, "on_platform", lambda cpu, default: default)
        monkeypatch.setattr(rules, "MOST_PATCHES", 0)  # all of them wait for derivatives
    parts, (params, frozen, x) = parts_of(name)

    @jax.jit
    def kernel(params, frozen, x):
        features = parts.features(params, frozen, x)
        return parts.contract(params, frozen, features, features)

    expected = reference_ntk(make(CASES[name])[0], params, frozen, x, trace_axes=(1,))
    np.testing.assert_allclose(kernel(params, frozen, x), expected, atol=2e-6 * np.abs(expected).max())


def test_each_platform_has_its_own_operations():
    """Grouped convolutions are sums over taps on CPUs, and derivatives there are kept by loops."""
    for name, operation, where in (("depthwise 3d", "convolution", "cuda"), ("max pooling", "while", "cpu")):
        parts, arguments = parts_of(name)
        traced = jax.jit(parts.features).trace(*arguments)
        for platform in ("cpu", "cuda"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert (f"stablehlo.{operation}" in text) == (platform == where)


def test_of_any_number_of_examples_in_one_artefact():
    parts, (params, frozen, x) = parts_of("conv")
    (n,) = export.symbolic_shape("n")
    some = tuple(jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for a in x)
    exported = export.export(jax.jit(parts.features), platforms=["cpu", "cuda"])(params, frozen, some)
    here = jax.jit(parts.features)(params, frozen, x)
    for value, expected in zip(jax.tree.leaves(exported.call(params, frozen, x)), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def _doubled(a, b):
    return 2 * a + b


def _added(a, b):
    return a + a + b


def test_vectorized_and_called_at_once():
    fn = on_platform(_doubled, _added)
    a, b = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    np.testing.assert_array_equal(fn(b, b), 3 * b)
    np.testing.assert_array_equal(jax.vmap(fn, (0, None))(a, b), 2 * a + 1)
    nested = jax.vmap(jax.vmap(fn, (0, 0)), (None, 0), 1)
    np.testing.assert_array_equal(jax.jit(nested)(b, a), jax.vmap(jax.vmap(_doubled), (None, 0), 1)(b, a))
    lowered = jax.jit(jax.vmap(fn, (0, None))).trace(a, b)
    assert "multiply" in lowered.lower(lowering_platforms=("cpu",)).as_text()
    assert "multiply" not in lowered.lower(lowering_platforms=("cuda",)).as_text()
