"""Traces estimated with random combinations of the outputs, against explicit Jacobians and the exact trace."""

import jax
import models
import numpy as np
import pytest

import exporter
from exporter import ExportConfig, ExportError, NtkConfig, export_savedmodel
from exporter.functionalize import functionalize
from exporter.ntk.layerwise.engine import layerwise_kernel_fn
from exporter.ntk.reference import reference_ntk
from exporter.ntk.sampled_traces import sampled_outputs, signs
from exporter.plan.planning import make_plan


@pytest.fixture(scope="module")
def spatial():
    """A model of outputs (n, 4, 4, 3) or so, and inputs."""
    model = functionalize(models.by_id("spatial_output").build())
    return model, models.random_inputs(model.inputs, 3)


def test_signs_are_the_same_everywhere():
    assert signs(2, 6, 0).tolist() == [[1, -1, -1, 1, -1, -1], [-1, 1, -1, 1, -1, 1]]
    assert not np.array_equal(signs(2, 6, 0), signs(2, 6, 1))
    many = signs(100, 1000, 7)
    assert set(np.unique(many)) == {-1, 1}
    assert abs(many.mean()) < 5 / np.sqrt(many.size)


@pytest.mark.parametrize(
    ("trace_axes", "diagonal_axes"), [((3,), (1, 2)), ((1, 2, 3), ()), ((2, 1), (3,)), ((-2,), (1,)), ((2, 3), ())]
)
def test_formula(spatial, trace_axes, diagonal_axes):
    """zᵀ J₁ J₂ᵀ z / (S C), averaged over the samples, of explicit Jacobians of every output."""
    model, x = spatial
    samples, seed = 2, 3

    def apply_fn(trainable, frozen, x):
        return sampled_outputs(model.apply_fn(trainable, frozen, x), trace_axes, samples, seed)

    axes = {"trace_axes": trace_axes, "diagonal_axes": diagonal_axes}
    kernel = jax.jit(layerwise_kernel_fn(apply_fn, **axes))(model.trainable, model.frozen, x)
    full = reference_ntk(model.apply_fn, model.trainable, model.frozen, x, trace_axes=())  # n n h h w w c c
    rank = len(model.output.shape)
    traced = [axis % rank for axis in trace_axes]
    sizes = [model.output.shape[axis] for axis in traced]
    z = signs(samples, int(np.prod(sizes)), seed).reshape(samples, *sizes)
    left, right, out = [20], [20], [0, 1]
    indices = [0, 1]
    for axis in range(1, rank):
        one, other = 2 * axis, 2 * axis + 1
        if axis in diagonal_axes:
            other = one
            out += [one]
        elif axis not in traced:
            out += [one, other]
        indices += [one, other]
    left += [2 * axis for axis in traced]
    right += [2 * axis + 1 for axis in traced]
    expected = np.einsum(full, indices, z, left, z, right, out, optimize=True) / (samples * np.prod(sizes))
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-4 * np.max(np.abs(expected)))


def test_unbiased(spatial):
    model, x = spatial
    exact = reference_ntk(model.apply_fn, model.trainable, model.frozen, x, trace_axes=(1, 2, 3))
    full = reference_ntk(model.apply_fn, model.trainable, model.frozen, x, trace_axes=())
    count = int(np.prod(model.output.shape[1:]))
    full = full.transpose(0, 1, 2, 4, 6, 3, 5, 7).reshape(3, 3, count, count)
    estimates = [
        np.einsum("nmab,sa,sb->nm", full, z, z) / (4 * count) for z in (signs(4, count, s) for s in range(400))
    ]
    error = np.std(estimates, axis=0, ddof=1) / np.sqrt(len(estimates))
    assert np.all(np.abs(np.mean(estimates, axis=0) - exact) <= 5 * error)


def test_batch_axis():
    with pytest.raises(ValueError, match="other than the batch axis"):
        sampled_outputs(np.zeros((2, 3)), (0,), 2, 0)


def test_export(tmp_path):
    model = models.by_id("mlp").build()
    ntk = NtkConfig(trace_samples=2, trace_seed=5)
    config = ExportConfig(
        platforms="cpu",
        signatures=("ntk", "ntk_diagonal", "ntk_features", "forward"),
        features={"dimensions": 512},
        warmup=False,
        verify={"examples": 4},
        memory_budget="32KiB",
    )
    result = export_savedmodel(model, tmp_path, ntk, config)
    told = result.manifest["trace"]
    plan = make_plan(model, NtkConfig(), ExportConfig())
    count = plan.model.output.shape[1]
    assert (told["samples"], told["outputs"], told["seed"], told["examples"]) == (2, count, 5, 4)
    assert 0 < told["deviation"] < 1
    assert 0 < told["difference"] < 2
    assert max(result.manifest["verification"]["errors"].values()) < 1e-5
    import tensorflow as tf

    loaded = tf.saved_model.load(str(result.path))
    x = models.random_inputs(plan.model.inputs, 3)
    full = reference_ntk(plan.model.apply_fn, plan.model.trainable, plan.model.frozen, x, trace_axes=())
    z = signs(2, count, 5)
    expected = np.einsum("nmab,sa,sb->nm", full, z, z) / (2 * count)
    np.testing.assert_allclose(loaded.ntk(*x, *x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loaded.ntk_diagonal(*x), np.diag(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loaded.forward(*x), model(x[0]), rtol=1e-4, atol=1e-5)
    features, norms = np.asarray(loaded.ntk_features(*x)), np.sqrt(np.diag(expected))
    errors = (features @ features.T - expected) / norms / norms[:, None]
    assert np.sqrt(np.mean(errors**2)) < 2 / np.sqrt(512)  # of the same combinations


def test_more_samples_than_outputs():
    with pytest.raises(ExportError, match=r"expected fewer samples than the \d+ traced outputs"):
        make_plan(models.by_id("mlp").build(), NtkConfig(trace_samples=100), ExportConfig())


def test_nothing_to_trace():
    with pytest.raises(
        ExportError, match=r"ntk.trace_samples: expected null, or axes to trace \(ntk.trace_axes\), got 4"
    ):
        NtkConfig(trace_axes=(), trace_samples=4)


@pytest.mark.parametrize("implementation", [1, "layerwise"])
def test_api_of_neural_tangents(implementation):
    model = models.by_id("mlp").build()
    functional = functionalize(model)
    (x,) = models.random_inputs(functional.inputs, 3)
    ntk_fn = exporter.empirical_ntk_fn_tf(model, vmap_axes=0, implementation=implementation, trace_samples=2)
    _, params = exporter.get_apply_fn_and_params(model)
    full = reference_ntk(functional.apply_fn, functional.trainable, functional.frozen, (x,), trace_axes=())
    z = signs(2, functional.output.shape[1], 0)
    expected = np.einsum("nmab,sa,sb->nm", full, z, z) / (2 * z.shape[1])
    np.testing.assert_allclose(ntk_fn(x, None, params), expected, rtol=1e-4, atol=1e-5)
