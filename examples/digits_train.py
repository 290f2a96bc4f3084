"""Trains a small Keras CNN on scikit-learn's digits, and writes it with what the other steps of the demo need.

    python -m examples.digits_train demo

Writes `digits.keras`, and `digits.npz` with the images and labels (`x_train`, `y_train`, `x_test`, `y_test`) and the
kernel of four test with four training images by explicit Jacobians in float64 (`block_x1`, `block_x2`,
`block_ntk`, and their `block_digits`); and `digits_train.npz` and `digits_test.npz`, the images again as commands take
data: `x`, `y`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from exporter.functionalize import functionalize
from exporter.ntk.reference import reference_ntk

TEST_EXAMPLES = 500
BLOCK_DIGITS = (0, 0, 1, 1)  # of the images whose kernel is shown


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory for the files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--references", type=int, help="images in digits_train.npz; all by default")
    args = parser.parse_args(argv)

    data = digits()
    print(f"{len(data['x_train'])} training and {len(data['x_test'])} test images of 8x8 pixels")
    start = time.monotonic()
    model = train(data, args.epochs)
    print(f"{model.count_params():,} parameters, {args.epochs} epochs, {time.monotonic() - start:.1f} s")
    model.save(args.output / "digits.keras")

    x1, x2 = of_digits(data["x_test"], data["y_test"]), of_digits(data["x_train"], data["y_train"])
    functional = functionalize(model)
    ntk = reference_ntk(functional.apply_fn, functional.trainable, functional.frozen, (x1,), (x2,))
    data |= {"block_x1": x1, "block_x2": x2, "block_ntk": ntk, "block_digits": np.array(BLOCK_DIGITS)}
    np.savez(args.output / "digits.npz", **data)  # type: ignore[arg-type]  # numpy takes the keywords for its own
    for part, count in (("train", args.references), ("test", None)):
        np.savez(args.output / f"digits_{part}.npz", x=data[f"x_{part}"][:count], y=data[f"y_{part}"][:count])
    written = (args.output / name for name in ("digits.keras", "digits.npz", "digits_train.npz", "digits_test.npz"))
    print(f"written: {', '.join(map(str, written))}", flush=True)
    return 0


def digits() -> dict[str, np.ndarray]:
    """Images (n, 8, 8, 1) with values from 0 to 1 and their digits, always divided in the same way."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    parts = train_test_split(images, labels, test_size=TEST_EXAMPLES, random_state=0, stratify=labels)
    return dict(zip(("x_train", "x_test", "y_train", "y_test"), parts, strict=True))


def network() -> keras.Model:
    """A CNN whose outputs are the logits of the ten classes."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv1"),
            layers.BatchNormalization(momentum=0.9, name="norm1"),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="conv2"),
            layers.BatchNormalization(momentum=0.9, name="norm2"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ],
        name="digits",
    )


def train(data: dict[str, np.ndarray], epochs: int) -> keras.Model:
    """The network trained; prints a line per epoch."""
    keras.utils.set_random_seed(0)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")])

    def show(epoch: int, logs: dict[str, float]) -> None:
        print(f"epoch {epoch + 1:2}   loss {logs['loss']:.4f}   accuracy {logs['accuracy']:.1%}", flush=True)

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=show)]
    model.fit(data["x_train"], data["y_train"], batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks)
    return model


def of_digits(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first images of the digits that are shown."""
    seen: dict[int, int] = {}
    chosen = []
    for digit in BLOCK_DIGITS:
        chosen.append(np.flatnonzero(labels == digit)[seen.get(digit, 0)])
        seen[digit] = seen.get(digit, 0) + 1
    return images[chosen]


if __name__ == "__main__":
    sys.exit(main())
