"""How the kernel changes while a network learns, from one SavedModel that is given new weights after every epoch.

    python -m examples.kernel_while_training

A network in the infinite-width limit keeps its kernel; a real one turns it towards its task, which shows in the
alignment of kernel and labels (Cortes et al. 2012; Fort et al. 2020, arXiv 2010.15110).
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from exporter import ExportConfig, export_savedmodel, get_apply_fn_and_params
from exporter.command.terminal import ConsoleProgress


class Row(NamedTuple):
    """What is followed: after `epoch` epochs."""

    epoch: int
    loss: float
    trace: float  # mean of the kernel's diagonal
    alignment: float  # cosine between the centred kernel and the kernel that tells equal labels from others
    change: float  # one minus the cosine between the kernel and the one of the start, which leaves scale out


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Exports once, then trains; prints and returns a row per epoch, the first for the start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--examples", type=int, default=200, help="of which the kernel is followed")
    args = parser.parse_args(argv)

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    x, y = images[: args.examples], labels[: args.examples]
    model = build()

    with tempfile.TemporaryDirectory() as base_dir:
        export = ExportConfig(platforms=("cpu",), signatures=("ntk_symmetric",))
        result = export_savedmodel(model, base_dir, export=export, progress=ConsoleProgress())
        kernels = tf.saved_model.load(str(result.path))

    print(f"\n{'epoch':>5} {'loss':>8} {'trace / n':>10} {'alignment':>10} {'change':>8}")
    start = kernels.ntk_symmetric(x).numpy()
    rows = []
    for epoch in range(args.epochs + 1):
        if epoch:
            model.fit(images, labels, batch_size=64, epochs=1, verbose=0)
            assign_weights(kernels, model)
        kernel = kernels.ntk_symmetric(x).numpy()
        loss = float(model.evaluate(x, y, verbose=0))
        change = max(0.0, 1 - cosine(kernel, start))
        rows.append(Row(epoch, loss, float(np.mean(np.diag(kernel))), alignment(kernel, y), change))
        print("{:5} {:8.3f} {:10.3f} {:10.3f} {:8.3f}".format(*rows[-1]), flush=True)
    return rows


def build() -> keras.Model:
    """A network with BatchNorm, whose statistics are no parameters, but variables that the kernel depends upon."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    hidden = [layers.Dense(64, activation="relu", kernel_initializer="he_normal") for _ in range(3)]
    model = keras.Sequential(
        [keras.Input((64,)), layers.BatchNormalization(momentum=0.9), *hidden, layers.Dense(10)], name="perceptron"
    )
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def assign_weights(kernels: tf.Module, model: keras.Model) -> None:
    """Gives the kernel the model's weights, and the statistics of its BatchNorm."""
    _, weights = get_apply_fn_and_params(model, trainable_only=False)
    for path, variable in {**kernels.params, **kernels.frozen}.items():
        variable.assign(weights[path])


def alignment(kernel: np.ndarray, labels: np.ndarray) -> float:
    """The cosine between the centred kernel and the centred kernel of the labels, 1 where they are equal."""
    n = len(labels)
    centring = np.eye(n) - 1 / n
    return cosine(centring @ kernel @ centring, centring @ (labels[:, None] == labels[None]) @ centring)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine between two matrices."""
    return float(np.sum(a * b, dtype=np.float64) / (np.linalg.norm(a) * np.linalg.norm(b)))


if __name__ == "__main__":
    main()
    sys.exit(0)
