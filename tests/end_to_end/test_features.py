"""Features of a kernel that is estimated, of a model that computes in half precision: verified by the export itself."""

import keras
import models
import numpy as np
import tensorflow as tf

from exporter import ExportConfig, NtkConfig, export_savedmodel

DIMENSIONS = 512


def test_features_approximate_the_kernel_of_the_same_export(tmp_path):
    """Of the same random combinations, and of the same rounding."""
    layers = [keras.layers.Dense(width, "tanh", dtype="mixed_bfloat16") for width in (12, 12)]
    half = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(8, dtype="mixed_bfloat16")])
    models.randomize(half.variables)
    ntk = NtkConfig(trace_samples=3, precision="model")
    config = ExportConfig(
        platforms=("cpu",),
        signatures=("ntk", "ntk_features"),
        features={"dimensions": DIMENSIONS},
        verify={"examples": 4},
    )
    result = export_savedmodel(half, tmp_path / "half", ntk, config)
    loaded = tf.saved_model.load(str(result.path))
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    kernel, features = (np.asarray(value, np.float64) for value in (loaded.ntk(x, x), loaded.ntk_features(x)))
    assert features.shape == (40, DIMENSIONS)
    norms = np.sqrt(np.diag(kernel))
    errors = (features @ features.T - kernel) / norms / norms[:, None]
    assert np.sqrt(np.mean(errors**2)) < 1.5 / np.sqrt(DIMENSIONS)
    assert result.manifest["verification"]["features"]["error"] < 3 / np.sqrt(DIMENSIONS)
