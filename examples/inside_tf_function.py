"""The kernel inside a TensorFlow graph of your own: how unsure a network is about each input.

    python -m examples.inside_tf_function

A network that is linear in its parameters around the trained ones has, before it has seen data, outputs that vary as a
Gaussian process with the NTK as covariance. Given a reference set X that it has been fitted to, the variance left at x
is K(x, x) - K(x, X) (K(X, X) + ridge)⁻¹ K(X, x) (Jacot et al. 2018; Lee et al. 2019, arXiv 1902.06720).
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from exporter import ExportConfig, export_savedmodel
from exporter.command.terminal import ConsoleProgress

RIDGE = 1e-3  # relative to the mean of the kernel's diagonal


class PredictiveVariance(tf.Module):
    """The share of its prior variance that each example keeps, given a reference set; 0: as sure as can be."""

    def __init__(self, kernels: tf.Module, reference: tf.Tensor) -> None:
        """Computes what depends on the reference set alone."""
        super().__init__()
        self.kernels = kernels
        self.reference = tf.Variable(reference, trainable=False)
        gram = kernels.ntk_symmetric(reference)
        ridge = RIDGE * tf.reduce_mean(tf.linalg.diag_part(gram))
        self.cholesky = tf.Variable(tf.linalg.cholesky(gram + ridge * tf.eye(len(reference))), trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32)])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """(n,) for inputs (n, 64); one graph for batches of all sizes."""
        prior = self.kernels.ntk_diagonal(x)
        explained = tf.linalg.triangular_solve(self.cholesky, self.kernels.ntk(self.reference, x))
        return (prior - tf.reduce_sum(explained**2, axis=0)) / prior


def main(argv: Sequence[str] | None = None) -> float:
    """Exports, asks for variances, and returns the largest difference from the same formula in NumPy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=64, help="of the network's hidden layer")
    parser.add_argument("--reference", type=int, default=200, help="examples of the reference set")
    parser.add_argument("--queries", type=int, default=100, help="examples of each kind that are asked about")
    args = parser.parse_args(argv)

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    reference, queries = images[: args.reference], images[-args.queries :]
    model = train(images[: -args.queries], labels[: -args.queries], args.units)

    with tempfile.TemporaryDirectory() as base_dir:
        export = ExportConfig(platforms=("cpu",), signatures=("ntk", "ntk_symmetric", "ntk_diagonal"))
        result = export_savedmodel(model, base_dir, export=export, progress=ConsoleProgress())
        kernels = tf.saved_model.load(str(result.path))
        variance = PredictiveVariance(kernels, tf.constant(reference))

        rng = np.random.default_rng(0)
        kinds = {
            "digits": queries,
            "digits with their pixels shuffled": rng.permuted(queries, axis=1),
            "digits turned upside down": queries[:, ::-1].copy(),
        }
        print(f"\n{'variance left, of the prior':<36} {'median':>8} {'largest':>8}")
        for name, x in kinds.items():
            left = variance(x).numpy()
            print(f"{name:<36} {np.median(left):8.1%} {np.max(left):8.1%}")
        difference = max(
            float(np.max(np.abs(variance(x).numpy() - in_numpy(kernels, reference, x)))) for x in kinds.values()
        )
    print(f"\nlargest difference from NumPy in float64: {difference:.1e}", flush=True)
    return difference


def train(images: np.ndarray, labels: np.ndarray, units: int) -> keras.Model:
    """A network with one hidden layer."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,)), keras.layers.Dense(units, activation="gelu"), keras.layers.Dense(10)]
    model = keras.Sequential(layers, name="perceptron")
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, batch_size=64, epochs=5, verbose=0)
    return model


def in_numpy(kernels: tf.Module, reference: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The same variances, from one kernel of all examples and by another way than Cholesky's."""
    both = np.concatenate([reference, x])
    kernel = kernels.ntk(both, both).numpy().astype(np.float64)
    n = len(reference)
    gram, cross, prior = kernel[:n, :n], kernel[:n, n:], np.diag(kernel)[n:]
    gram = gram + RIDGE * np.mean(np.diag(gram)) * np.eye(n)
    return 1 - np.sum(cross * np.linalg.solve(gram, cross), axis=0) / prior


if __name__ == "__main__":
    sys.exit(main() > 1e-4)
