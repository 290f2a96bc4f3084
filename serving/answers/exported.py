"""An export in this process, asked by rows of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.dataset.data import Data, Rows
from serving.dataset.export import Export
from serving.shared.progress import Progress
from serving.shared.quiet import silent_stderr

_ROWS = 512  # of a request


class Exported:
    """A loaded export.

    Attributes:
      model: as TensorFlow loaded it.
      manifest: of the export.
      path: of its version.
      keeps: whether it can keep examples' own features.
    """

    def __init__(self, export: Export) -> None:
        """Loads it."""
        self.manifest, self.path = export.manifest, export.path
        with silent_stderr():
            self.model = tf.saved_model.load(str(export.path))
        self.keeps = hasattr(self.model, "ntk_of_references")

    def has(self, *signatures: str) -> bool:
        """Whether it has all of these."""
        return all(name in self.model.signatures for name in signatures)

    @property
    def specs(self) -> dict[str, tf.TensorSpec]:
        """Of the model's inputs, by the names that signatures of one side give them, in the model's order."""
        given = self.model.signatures["forward"].structured_input_signature[1]
        return {entry["input"]: given[entry["input"]] for entry in self.manifest["inputs"]}

    def inputs(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Examples as signatures of one side take them."""
        return {f"x{suffix}": tensor(array) for suffix, array in rows.inputs.items()}

    def call(self, signature: str, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The one output of a signature."""
        (output,) = self.model.signatures[signature](**inputs).values()
        return output

    def pairs(self, x1: Mapping[str, tf.Tensor], x2: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The kernel (n1, n2)."""
        sides = {side + name[1:]: value for side, x in (("x1", x1), ("x2", x2)) for name, value in x.items()}
        return self.call("ntk", sides)

    def symmetric(self, x: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The kernel (n, n)."""
        return self.call("ntk_symmetric", x) if self.has("ntk_symmetric") else self.pairs(x, x)

    def batches(self, data: Data) -> Iterator[dict[str, tf.Tensor]]:
        """All examples of a data set, by requests."""
        for start in range(0, data.rows, _ROWS):
            yield self.inputs(data.read(start, min(data.rows, start + _ROWS)))

    def rows_of(self, signature: str, data: Data, title: str) -> np.ndarray:
        """A signature's result for all examples of a data set."""
        progress = Progress(title, data.rows, None, unit="examples")
        parts = []
        try:
            for inputs in self.batches(data):
                parts.append(self.call(signature, inputs).numpy())
                progress.advance(len(parts[-1]))
        finally:
            progress.close()
        return np.concatenate(parts)


def version_of(path: Path) -> Any:
    """A SavedModel, loaded as users would."""
    with silent_stderr():
        return tf.saved_model.load(str(path))


def tensor(array: np.ndarray) -> tf.Tensor:
    """An array for TensorFlow, also of texts."""
    return tf.constant(array.tolist() if array.dtype.hasobject and array.size else array)
