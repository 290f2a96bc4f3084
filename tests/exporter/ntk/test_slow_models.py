"""A large model of keras.applications, as its users have it."""

import jax
import keras
import numpy as np
import pytest

from exporter.config import ExportConfig, NtkConfig
from exporter.ntk.reference import reference_ntk
from exporter.plan.planning import make_plan

pytestmark = pytest.mark.slow

SIZE = 32


@pytest.fixture(autouse=True)
def optimised():
    """Running it takes longer than compiling it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def images(n, seed):
    return np.random.default_rng(seed).uniform(-1, 1, (n, SIZE, SIZE, 3)).astype(np.float32)


def set_statistics(model, x):
    """BatchNorm statistics of a batch that keep the scale of what passes through.

    Those of a new model let it vanish in some; and the batch's own means and variances, with random weights, make small
    changes grow from layer to layer, rounding errors too: the output then is off by 1e-5 in float32.
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in layers:
        layer.momentum = 0.0
    model(x, training=True)
    for layer in layers:
        square = keras.ops.mean(layer.moving_variance + layer.moving_mean**2)
        layer.moving_variance.assign(keras.ops.full(layer.moving_variance.shape, square))
        layer.moving_mean.assign(keras.ops.zeros(layer.moving_mean.shape))


def test_mobilenets_kernel_is_within_5e_6_of_the_float64_reference():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(
        weights=None, classes=10, input_shape=(SIZE, SIZE, 3), classifier_activation=None
    )
    set_statistics(model, images(16, seed=0))
    plan = make_plan(model, NtkConfig(), ExportConfig())
    arguments = (plan.model.trainable, plan.model.frozen, (images(2, seed=1),))
    kernel = jax.jit(lambda params, frozen, x: plan.kernel("layerwise")(params, frozen, x, x))(*arguments)
    expected = reference_ntk(plan.model.apply_fn, *arguments, memory=2 << 30, **plan.axes)
    assert kernel.shape == (2, 2)
    assert np.max(np.abs(kernel - expected)) <= 5e-6 * np.max(np.abs(expected))
