import dataclasses

import jax
import jax.numpy as jnp
import layerwise_cases
import numpy as np
import pytest
from cpu_engine import projected_features_fn

from exporter.compat.jax_names import enable_x64
from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise import drawn, lowering, projection
from exporter.ntk.layerwise.features import ExampleFeatures
from exporter.ntk.layerwise.projection import Projection
from exporter.ntk.measure import bytes_of_program
from exporter.ntk.reference_features import reference_features

SKETCH = Sketch(16, seed=3)
# Of each way from a variable to a site, and of each rule, one.
CASES = (
    "left operand",
    "tied",
    "conv",
    "conv channels first",
    "batch norm",
    "attention",
    "recurrent",
    "scan with a counter",
    "weight norm",
    "no rule",
)


def assert_close(received, expected):
    assert received.shape == expected.shape
    np.testing.assert_allclose(received, expected, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_projection_of_explicit_jacobians(name):
    apply_fn, params, frozen, x, _ = layerwise_cases.make(layerwise_cases.CASES[name])
    received = jax.jit(projected_features_fn(apply_fn, SKETCH, trace_axes=(1,)))(params, frozen, x)
    assert_close(received, reference_features(apply_fn, params, frozen, x, SKETCH, trace_axes=(1,)))


def wide(p, s, x):
    y = jnp.tanh(jax.lax.conv_general_dilated(x[0], p["k"], (1, 1), "VALID", **layerwise_cases.CONV) + p["b"])
    y = jnp.tanh(y.reshape(len(y), -1) @ p["c"] + p["d"])
    return (y @ p["e"]).reshape(len(y), 3, 2)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    shapes = {"k": (2, 2, 3, 6), "b": (6,), "c": (96, 10), "d": (10,), "e": (10, 6)}
    params = {path: rng.normal(size=shape).astype("f") / 3 for path, shape in shapes.items()}
    return params, (rng.normal(size=(4, 5, 5, 3)).astype("f"),)


@pytest.fixture(scope="module")
def expected(model):
    params, x = model
    return reference_features(wide, params, {}, x, SKETCH, trace_axes=(2,))


@pytest.mark.parametrize(("cache", "memory"), [(None, 1), (1, 1), (1, 1 << 30), (1 << 22, 1)])
def test_parts_of_examples_outputs_and_variables(model, expected, monkeypatch, cache, memory):
    """Blocks of factors, examples and outputs one after the other or not, and platforms where all rows move at once.

    Signs are made for some rows at a time, as for large models.
    """
    params, x = model
    for module, name in ((projection, "BLOCK"), (projection, "TOGETHER"), (projection, "IN_CACHE"), (drawn, "FEW")):
        monkeypatch.setattr(module, name, 1)
    features = ExampleFeatures(wide, params, {}, x, counts=(1, 1), trace_axes=(2,), diagonal_axes=())
    how = dataclasses.replace(lowering.DEFAULT, cache=cache)
    project = Projection(features, SKETCH, trace_axes=[2], memory=memory, hows=[how])
    received = jax.jit(lambda p, x: project(p, {}, x))(params, x)
    assert received.shape == (4, 3, 16)
    assert_close(received, expected)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_in_float64(model, expected, memory):
    """As exports are verified by it, all outputs at once and one after the other."""
    params, x = jax.tree.map(np.float64, model)
    with enable_x64(True):
        features = projected_features_fn(wide, SKETCH, trace_axes=(2,), memory=memory)
        received = np.asarray(jax.jit(features)(params, {}, x))
    assert received.dtype == np.float64
    np.testing.assert_allclose(received, expected, atol=1e-13 * np.max(np.abs(expected)))


@pytest.mark.parametrize("how", [lowering.DEFAULT, lowering.CPU])
def test_a_jacobian_that_does_not_fit_is_never_in_memory(how):
    """That of one output by the matrix takes 200 MB, and its signs and shifted rows as much again."""
    params = {"w": jax.ShapeDtypeStruct((12_500, 4_000), jnp.float32)}
    x = (jax.ShapeDtypeStruct((1, 12_500), jnp.float32),)

    def apply_fn(p, s, x):
        return (x[0] @ p["w"])[:, :2]

    features = ExampleFeatures(apply_fn, params, {}, x, counts=(1, 1), trace_axes=(1,), diagonal_axes=())
    project = Projection(features, Sketch(4_096), trace_axes=[1], memory=400 << 20, hows=[how])
    assert bytes_of_program(lambda p, x: project(p, {}, x), params, x) < project.bytes_at_work(1) < 200 << 20


def test_more_outputs_than_dimensions(model):
    params, x = model
    sketch = Sketch(4)
    received = jax.jit(projected_features_fn(wide, sketch, trace_axes=(1, 2)))(params, {}, x)
    assert_close(received, reference_features(wide, params, {}, x, sketch, trace_axes=(1, 2)))


def test_no_examples_and_no_traced_axes(model):
    params, x = model
    features = jax.jit(projected_features_fn(wide, SKETCH, trace_axes=()))
    assert features(params, {}, (x[0][:0],)).shape == (0, 3, 2, 16)
    assert_close(features(params, {}, x), reference_features(wide, params, {}, x, SKETCH, trace_axes=()))


@pytest.mark.parametrize("n", [0, 4])
def test_of_the_output_only_a_bias(model, n):
    """Its derivative is the same for all examples, and there is no data to count them by."""
    x = (model[1][0].reshape(4, -1)[:n],)

    def biased(p, s, x):
        return jnp.tanh(x[0][:, :3]) + p["b"]

    params = {"b": np.ones(3, "f")}
    received = jax.jit(projected_features_fn(biased, SKETCH, trace_axes=(1,)))(params, {}, x)
    assert received.shape == (n, 16)
    if n:
        assert_close(received, reference_features(biased, params, {}, x, SKETCH, trace_axes=(1,)))
