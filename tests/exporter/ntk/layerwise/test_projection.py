import jax
import jax.experimental
import layerwise_cases
import numpy as np
import pytest

from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise.projected import projected_features_fn
from exporter.ntk.precision import in_float64


def jacobians(apply_fn, params, frozen, x):
    """float64 (n, outputs, *shape) of each parameter, of an output (n, outputs)."""
    with jax.experimental.enable_x64():
        fn = in_float64(apply_fn, params, frozen, x)
        wide = {path: np.asarray(value, np.float64) for path, value in params.items()}

        def of_one(*x):
            return jax.jacrev(lambda p: fn(p, frozen, tuple(a[None] for a in x))[0])(wide)

        return jax.tree.map(np.asarray, jax.jit(jax.vmap(of_one))(*x))


@pytest.mark.parametrize("name", layerwise_cases.CASES)
def test_projection_of_explicit_jacobians(name):
    apply_fn, params, frozen, x, _ = layerwise_cases.make(layerwise_cases.CASES[name])
    sketch = Sketch(16, seed=3)
    received = jax.jit(projected_features_fn(apply_fn, sketch, trace_axes=(1,)))(params, frozen, x)
    expected = sketch.project(jacobians(apply_fn, params, frozen, x))
    assert received.shape == expected.shape
    np.testing.assert_allclose(received, expected, atol=1e-5 * np.max(np.abs(expected)))
