"""Every model of the zoo once: as a function, against TensorFlow, and its kernel, against the float64 reference."""

import jax
import models
import numpy as np
import pytest
from jax import export

from exporter.compat.jax_names import enable_x64
from exporter.config import ExportConfig, NtkConfig
from exporter.ntk.reference import reference_ntk
from exporter.plan.planning import make_plan


def _widen(values):
    return jax.tree.map(lambda v: v.astype(np.float64) if np.issubdtype(v.dtype, np.floating) else v, values)


@pytest.fixture(params=models.ZOO, ids=lambda entry: entry.id, scope="module")
def zoo(request):
    entry = request.param
    model = entry.build()
    return entry, model, make_plan(model, NtkConfig(**entry.options), ExportConfig(platforms=("cpu",)))


def _assert_close(actual, expected, rtol):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= rtol * np.max(np.abs(expected))


def test_forward_equals_tensorflow_at_any_batch_size(zoo):
    """Lowered for all of them, and in float64: loops, lists and constants widen with the arguments."""
    entry, model, plan = zoo
    functional = plan.model
    variables = (dict(functional.trainable), dict(functional.frozen))
    apply = jax.jit(functional.apply_fn)
    (batch,) = export.symbolic_shape("batch")
    specs = tuple(jax.ShapeDtypeStruct((batch, *spec.shape[1:]), spec.dtype) for spec in functional.inputs)
    exported = export.export(apply)(*variables, specs)
    for batch_size in (1, 3):
        inputs = models.random_inputs(functional.inputs, batch_size)
        expected = entry.call(model, inputs)
        output = exported.call(*variables, inputs)
        assert output.dtype == functional.output.dtype
        assert output.shape == (batch_size, *functional.output.shape[1:])
        _assert_close(output, expected, 1e-5)
    with enable_x64():
        wide = apply(*_widen((*variables, inputs)))
    assert wide.dtype == np.float64
    _assert_close(wide, expected, 2e-6)


def test_default_kernel_is_within_5e_6_of_the_float64_reference(zoo):
    """The function that is lowered. What lowering and serving add is the same for all models."""
    _, _, plan = zoo
    variables = (plan.model.trainable, plan.model.frozen)
    x = models.random_inputs(plan.model.inputs, 3, seed=2)
    sides = (tuple(a[rows] for a in x) for rows in (slice(2), slice(1, 3)))  # as many on both: traced once
    kernel = jax.jit(plan.kernel("layerwise"))(*variables, *sides)
    assert kernel.dtype == np.float32
    _assert_close(kernel, reference_ntk(plan.model.apply_fn, *variables, x, **plan.axes)[:2, 1:], 5e-6)
