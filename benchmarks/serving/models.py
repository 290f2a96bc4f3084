"""Versions of a small model, and what each of them answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.shared import reference
from serving.shared.exports import read_manifest

SIGNATURES = ("ntk", "ntk_symmetric", "ntk_diagonal", "forward")


def export_versions(base_dir: Path, count: int) -> list[Path]:
    """Exports versions of a small CNN on 8 by 8 images that differ in their weights."""
    import keras

    from exporter import ExportConfig, NtkConfig, export_savedmodel
    from exporter.config import VerifyConfig

    layers = keras.layers
    paths = []
    for seed in range(count):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(16, 3, activation="relu"),
                layers.Conv2D(16, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(10),
            ]
        )
        config = ExportConfig(platforms=("cpu",), signatures=SIGNATURES, verify=VerifyConfig(examples=2))
        paths.append(export_savedmodel(model, base_dir, NtkConfig(), config).path)
    return paths


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a version answers for a pool of examples, computed in this process.

    Attributes:
      version: its number.
      kernel: (n, n, ...) of all of the pool.
      diagonal: (n, ...).
      forward: (n, ...).
    """

    version: int
    kernel: np.ndarray
    diagonal: np.ndarray
    forward: np.ndarray

    def expected(self, signature: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The answer for these of the examples; `columns` are x2."""
        if signature == "ntk":
            return self.kernel[np.ix_(rows, columns)]
        if signature == "ntk_symmetric":
            return self.kernel[np.ix_(rows, rows)]
        return (self.diagonal if signature == "ntk_diagonal" else self.forward)[rows]

    def matches(self, answer: np.ndarray, signature: str, rows: np.ndarray, columns: np.ndarray) -> bool:
        """Whether the answer is this version's: every entry within 1e-5 of the largest of the pool."""
        expected = self.expected(signature, rows, columns)
        whole = {"ntk_diagonal": self.diagonal, "forward": self.forward}.get(signature, self.kernel)
        return answer.shape == expected.shape and bool(
            np.all(np.abs(answer - expected) <= 1e-5 * np.max(np.abs(whole)))
        )


def pool(version: Path, size: int) -> np.ndarray:
    """That many different examples for a model with one input."""
    (spec,) = read_manifest(version)["inputs"]
    (examples,) = reference.examples([(spec["shape"], spec["dtype"])], size)
    return examples


def answers(versions: Sequence[Path], examples: np.ndarray) -> list[Answers]:
    """What each version answers.

    Raises:
      ValueError: two of the examples or of the versions could be mistaken for each other.
    """
    import tensorflow as tf

    result = []
    for path in versions:
        signatures = tf.saved_model.load(str(path)).signatures
        values = [signatures[name](x=tf.constant(examples)) for name in SIGNATURES[1:]]
        one = Answers(int(path.name), *(np.asarray(next(iter(value.values()))) for value in values))
        result.append(one)
        rows = one.kernel.reshape(len(examples), -1)
        gaps = np.max(np.abs(rows[:, None] - rows[None]), axis=-1)
        if np.min(gaps[~np.eye(len(examples), dtype=bool)]) < 1e-3 * np.max(np.abs(rows)):
            raise ValueError(f"{path}: two examples have the same kernel, so that foreign rows would not be seen")
    for a, b in itertools.pairwise(result):
        if np.max(np.abs(a.forward - b.forward)) < 1e-3 * np.max(np.abs(a.forward)):
            raise ValueError(f"versions {a.version} and {b.version} answer the same, so that swaps would not be seen")
    return result
