"""Intervals that hold what they promise: a network on scikit-learn's diabetes data, with answers of `ntk-fit`.

    python -m examples.diabetes_intervals build/diabetes

Trains on half of 442 patients, exports the kernel, fits answers on that half, and counts on the other half how often
the target lies within one and two standard deviations.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from exporter import ExportConfig, export_savedmodel
from serving.answers.run import Options, run_fit


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, exports, fits, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory for all that is written")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)

    (x, y), (x_test, y_test) = patients()
    network = train(x, y)
    export = ExportConfig(platforms=("cpu",), signatures=("ntk", "ntk_diagonal", "forward"))
    export_savedmodel(network, args.output / "ntk", export=export)
    np.savez(args.output / "train.npz", x=x, y=y)
    options = Options(str(args.output / "ntk"), str(args.output / "train.npz"), args.output / "answers")
    answers = tf.saved_model.load(str(run_fit(options, lambda word, more: print(f"{word:<12}{more}", flush=True))))

    predicted = answers.predict(x_test)
    deviations = np.sqrt(predicted["variance"])[:, None]
    errors = np.abs(predicted["mean"] - y_test)
    print("\nof 221 other patients   within 1 deviation   within 2")
    print(f"{'expected':<24}{0.683:>18.0%}{0.954:>11.0%}")
    print(f"{'found':<24}{np.mean(errors <= deviations):>18.0%}{np.mean(errors <= 2 * deviations):>11.0%}")
    return 0


def patients() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Ten standardized measurements (n, 10) and the standardized progression of the disease (n, 1), in two halves."""
    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(0), (y - y.mean()) / y.std()
    x, x_test, y, y_test = train_test_split(
        x.astype(np.float32), y.astype(np.float32)[:, None], test_size=0.5, random_state=0
    )
    return (x, y), (x_test, y_test)


def train(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """A small network of tanh units."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential(
        [keras.Input((10,)), layers.Dense(32, "tanh"), layers.Dense(32, "tanh"), layers.Dense(1)]
    )
    network.compile(keras.optimizers.Adam(1e-3), "mse")
    network.fit(x, y, epochs=60, batch_size=32, verbose=0)
    return network


if __name__ == "__main__":
    sys.exit(main())
