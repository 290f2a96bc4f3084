"""The kernel of a sample is right however it is divided to fit the memory."""

import export_models
import numpy as np
import pytest

from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.monitor.kernel import KernelNow
from exporter.monitor.sample import draw
from exporter.ntk.reference import reference_ntk
from exporter.plan.planning import make_plan

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return export_models.many_outputs()


@pytest.fixture(scope="module")
def expected(model):
    plan = make_plan(model, NtkConfig(), ExportConfig()).model
    x = draw(X, None, 40, seed=0).inputs[""]
    return reference_ntk(plan.apply_fn, plan.trainable, plan.frozen, (x,), trace_axes=(1,))


# In 1, 4 and 6 passes. In between it is for XLA to say what fits: JAX 0.7 and 0.10 have different ones.
@pytest.mark.parametrize(("memory", "blocks"), [(1 << 30, {40}), (1 << 15, {4, 8}), (1 << 12, {1})])
def test_of_any_memory(model, expected, memory, blocks):
    kernel = KernelNow(model, NtkConfig(), draw(X, None, 40, seed=0), memory)
    np.testing.assert_allclose(kernel(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert kernel.smallest in blocks


def test_of_too_little_memory(model):
    with pytest.raises(ExportError, match="does not fit the memory budget"):
        KernelNow(model, NtkConfig(), draw(X, None, 40, seed=0), 256)


def test_it_follows_the_weights(model):
    kernel = KernelNow(model, NtkConfig(), draw(X, None, 8, seed=0), 1 << 30)
    before, bias = kernel(), model.layers[-1].kernel
    bias.assign(2 * bias)
    try:
        assert np.abs(kernel() - before).max() > 0.1 * np.abs(before).max()
    finally:
        bias.assign(bias / 2)
    np.testing.assert_array_equal(kernel(), before)
