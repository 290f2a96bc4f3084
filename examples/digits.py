"""From real data to answers of a neural tangent kernel, in six commands that are shown as they run.

    python -m examples.digits demo

Trains a small Keras CNN on scikit-learn's 1,797 handwritten digits (8x8 pixels), exports its kernel with `ntk-export`,
uses the SavedModel in a process that cannot import JAX, fits answers to the training images with `ntk-fit`, asks them,
and writes a page about all that with `ntk-report`. What is written lies in the given directory.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CONFIG = """\
ntk:
  trace_axes: [-1]        # averaged over the ten classes: one number for each pair of images
  trainable: "*"          # over all trainable variables
  precision: float32
export:
  platforms: [cpu, cuda]  # one SavedModel for both
"""
_COMMANDS = {"exporter": "ntk-export", "serving.answers.main": "ntk-fit", "serving.report.main": "ntk-report"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the six commands; returns the exit code of the first that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", default="demo", help="directory for all that is written")
    parser.add_argument("--epochs", type=int, default=10, help="of training the network")
    parser.add_argument("--examples", type=int, default=500, help="training examples of the kernel regression")
    parser.add_argument("--references", type=int, help="training images that answers know; all by default")
    parser.add_argument("--set", action="append", default=[], help="as of ntk-export, which it is passed to")
    args = parser.parse_args(argv)
    start = time.monotonic()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    model, config, base_dir, data = (output / name for name in ("digits.keras", "ntk.yaml", "digits_ntk", "digits.npz"))
    train, test, answers = (output / name for name in ("digits_train.npz", "digits_test.npz", "digits_answers"))
    references = [f"--references={args.references}"] if args.references else []
    config.write_text(CONFIG, encoding="utf-8")
    overrides = [f"--set={override}" for override in args.set]
    steps: tuple[tuple[str, str, list[object]], ...] = (
        (
            "Train a small Keras CNN on scikit-learn's digits",
            "examples.digits_train",
            [output, f"--epochs={args.epochs}", *references],
        ),
        (
            "Export its neural tangent kernel as a SavedModel",
            "exporter",
            [f"--model={model}", f"--config={config}", f"--output={base_dir}", *overrides],
        ),
        (
            "Use the SavedModel in a process that has TensorFlow and cannot import JAX",
            "examples.digits_regression",
            [base_dir, data, f"--examples={args.examples}"],
        ),
        (
            "Fit answers to the training images",
            "serving.answers.main",
            [f"--export={base_dir}", f"--data={train}", f"--output={answers}", f"--holdout={test}"],
        ),
        (
            "Ask them of test images, again without what made them",
            "examples.digits_answers",
            [answers, test, train],
        ),
        (
            "Write a page about kernel and answers",
            "serving.report.main",
            [
                f"--export={base_dir}",
                f"--data={test}",
                f"--answers={answers}",
                f"--references={train}",
                f"--output={output / 'report.html'}",
            ],
        ),
    )
    for number, (title, module, arguments) in enumerate(steps, 1):
        print(f"\n{number}. {title}", flush=True)
        code = run(module, [str(argument) for argument in arguments], output / f"log_{number}.txt")
        if code:
            return code
    print(f"\n{time.monotonic() - start:.0f} s in all; everything lies in {output}", flush=True)
    return 0


def run(module: str, arguments: Sequence[str], log: Path) -> int:
    """Shows and runs `python -m module arguments`; what the libraries write to stderr is only shown if it fails."""
    shown = _COMMANDS.get(module, f"python -m {module}")
    print(f"$ {' '.join([shown, *arguments])}\n", flush=True)
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"KERAS_BACKEND": "tensorflow", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with log.open("w", encoding="utf-8") as stderr:
        code = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **quiet, "PYTHONPATH": path},
            stderr=stderr,
            check=False,
        ).returncode
    if code:
        print(f"{log.read_text(encoding='utf-8', errors='replace')}\nfailed with exit code {code}", file=sys.stderr)
    else:
        log.unlink()
    return code


if __name__ == "__main__":
    sys.exit(main())
