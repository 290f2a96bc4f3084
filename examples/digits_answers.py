"""What answers say of test images: how sure, like which, resting on which, and how new; NumPy and TensorFlow alone.

    python -m examples.digits_answers demo/digits_answers demo/digits_test.npz demo/digits_train.npz

As in `examples.digits_regression`, everything that made the SavedModel is blocked first.
"""

from examples import BLOCKED, block, imported

if __name__ == "__main__":
    block()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from examples.digits_regression import newest, timed

SHOWN = 4  # nearest and supporting images of each
SHADES = np.array([*" ░▒▓█"])


def main(argv: Sequence[str] | None = None) -> int:
    """Shows the surest, the middle and the least sure prediction for test images, and the most novel image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_dir", type=Path, help="model base directory of the answers; its newest version is asked")
    parser.add_argument("test", type=Path, help="digits_test.npz")
    parser.add_argument("train", type=Path, help="digits_train.npz, which the answers were fitted to")
    args = parser.parse_args(argv)
    with np.load(args.test) as test, np.load(args.train) as train:
        x, y, reference_digits = test["x"], test["y"], train["y"]

    path = newest(args.base_dir)
    signatures = timed("load", lambda: tf.saved_model.load(str(path))).signatures

    def ask(signature: str, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in signatures[signature](x=tf.constant(images)).items()}

    predicted = timed(f"predict, {len(x)} images", lambda: ask("predict", x))
    order = np.argsort(-predicted["mean"].max(1))
    rows = order[[0, len(order) // 2, -1]]
    nearest = timed(f"nearest, {len(rows)} images", lambda: ask("nearest", x[rows]))
    support = timed(f"support, {len(rows)} images", lambda: ask("support", x[rows]))
    print("\nThe surest prediction, one in the middle, and the least sure:")
    for k, row in enumerate(rows):
        lines = (
            f"test image {row}, a {y[row]}",
            f"predicted   {guesses(predicted['mean'][row])}; "
            f"standard deviation of the logits {np.sqrt(predicted['variance'][row]):.3f}",
            f"nearest     {listed(nearest['id'][k], nearest['similarity'][k], reference_digits, '.2f')}",
            f"supporting  {listed(support['id'][k], support['weight'][k], reference_digits, '+.2f')}",
        )
        show(x[row], lines)
    print("\nThe most novel test image:")
    row = int(predicted["novelty"].argmax())
    median = np.median(predicted["novelty"])
    novelty = f"novelty     {predicted['novelty'][row]:.3f}, the median {median:.3f} (0: seen, 1: nothing like it)"
    show(x[row], (f"test image {row}, a {y[row]}", f"predicted   {guesses(predicted['mean'][row])}", novelty))
    print(f"\nimported here of {', '.join(BLOCKED)}: {imported()}")
    print(f"the answers lie in {path}", flush=True)
    return 0


def guesses(probabilities: np.ndarray) -> str:
    """The two most probable digits."""
    return ", ".join(f"{digit} at {probabilities[digit]:.1%}" for digit in np.argsort(-probabilities)[:2])


def listed(ids: np.ndarray, values: np.ndarray, digits: np.ndarray, form: str) -> str:
    """The first of some reference images: number, digit and value."""
    pairs = zip(ids[:SHOWN], values[:SHOWN], strict=True)
    return "  ".join(f"{f'#{i}':>5} (a {digits[i]}) {value:{form}}" for i, value in pairs)


def show(image: np.ndarray, lines: Sequence[str]) -> None:
    """Prints an image (8, 8, 1) in shades, with lines beside it."""
    shades = SHADES[np.round(image[..., 0] * (len(SHADES) - 1)).astype(int)]
    print()
    for k, pixels in enumerate(shades):
        text = lines[k - 2] if 2 <= k < 2 + len(lines) else ""
        print(f"  {''.join(pixels.repeat(2))}  {text}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
