"""Kernel regression on an exported neural tangent kernel, with NumPy and TensorFlow alone.

    python -m examples.digits_regression demo/digits_ntk demo/digits.npz

Everything that made the SavedModel is blocked first, so that this runs as on a machine that has never heard of it.
"""

from examples import BLOCKED, block, imported

if __name__ == "__main__":
    block()

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

RIDGE = 1e-3  # added to the kernel's diagonal, relative to its mean
CLASSES = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Shows a block of the kernel and its check, then the test accuracy of three predictors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_dir", type=Path, help="model base directory; its newest version is used")
    parser.add_argument("data", type=Path, help="digits.npz")
    parser.add_argument("--examples", type=int, default=500, help="training examples of the kernel regression")
    args = parser.parse_args(argv)
    with np.load(args.data) as file:
        data = dict(file.items())

    path = newest(args.base_dir)
    model = timed("load", lambda: tf.saved_model.load(str(path)))
    show_block(model, data)

    x, y = data["x_train"][: args.examples], data["y_train"][: args.examples]
    x_test, y_test = data["x_test"], data["y_test"]
    n, n_test = len(x), len(x_test)
    train_kernel = timed(f"kernel of {n} x {n} images, symmetric", lambda: model.ntk_symmetric(x).numpy())
    test_kernel = timed(f"kernel of {n_test} x {n} images", lambda: model.ntk(x_test, x).numpy())
    network = timed(f"forward of {n_test} images", lambda: model.forward(x_test).numpy())

    targets = np.eye(CLASSES)[y] - 1 / CLASSES
    pixels, pixels_test = x.reshape(n, -1), x_test.reshape(n_test, -1)
    rows = (
        ("the network", len(data["x_train"]), network),
        ("kernel regression on the network's NTK", n, regression(train_kernel, test_kernel, targets)),
        ("the same on inner products of pixels", n, regression(pixels @ pixels.T, pixels_test @ pixels.T, targets)),
    )
    print(f"\n{'predictor':<42} {'images trained on':>18} {'test accuracy':>14}")
    for name, count, scores in rows:
        print(f"{name:<42} {count:>18} {np.mean(np.argmax(scores, 1) == y_test):>14.1%}")
    print(f"\nimported here of {', '.join(BLOCKED)}: {imported()}")
    print(f"the SavedModel lies in {path}", flush=True)
    return 0


def newest(base_dir: Path) -> Path:
    """The newest version below a model base directory."""
    return max((path for path in base_dir.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def show_block(model: Any, data: dict[str, np.ndarray]) -> None:
    """The kernel of a few test and training images, and how far it is from the float64 Jacobians."""
    x1, x2, expected = data["block_x1"], data["block_x2"], data["block_ntk"]
    kernel = timed(f"kernel of {len(x1)} x {len(x2)} images, first call", lambda: model.ntk(x1, x2).numpy())
    digits = data["block_digits"]
    print("\nNTK of test images (rows) and training images (columns) of these digits:\n")
    print("      " + "".join(f"{digit:>12}" for digit in digits))
    for digit, row in zip(digits, kernel, strict=True):
        print(f"  {digit:>4}" + "".join(f"{value:12.5g}" for value in row))
    difference = np.max(np.abs(kernel - expected)) / np.max(np.abs(expected))
    print(f"\nlargest difference from explicit float64 Jacobians, relative to the largest entry: {difference:.1e}\n")


def regression(train_kernel: np.ndarray, test_kernel: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Kernel ridge regression, the mean of a Gaussian process: K(test, train) (K(train, train) + ridge)⁻¹ targets."""
    kernel = train_kernel.astype(np.float64)
    ridge = RIDGE * np.mean(np.diag(kernel))
    return test_kernel @ np.linalg.solve(kernel + ridge * np.eye(len(kernel)), targets)


def timed(what: str, compute: Callable[[], Any]) -> Any:
    """The result of `compute`; prints how long it took."""
    start = time.monotonic()
    result = compute()
    print(f"{what:<42} {time.monotonic() - start:8.1f} s", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
