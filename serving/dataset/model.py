"""A SavedModel in a worker: loaded once, asked for one tile at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.dataset.errors import DatasetError
from serving.dataset.export import digest_of
from serving.shared.quiet import import_tensorflow_quietly, silent_stderr


class Model:
    """An export's signatures, of NumPy arrays."""

    def __init__(self, path: Path, digest: str, threads: int) -> None:
        """Loads it.

        Args:
          path: of the version.
          digest: that it must have.
          threads: that TensorFlow may use, if it was not used in this process before.

        Raises:
          DatasetError: there is none, or it is another.
        """
        if not path.is_dir():
            raise DatasetError(
                f"Expected the export in {path} on every worker, found none: workers must share its disk."
            )
        if digest_of(path) != digest:
            raise DatasetError(
                f"{path} is not the export that the job was started with: it was replaced, or is a copy."
            )
        import_tensorflow_quietly()
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # its threads run already
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        with silent_stderr():
            self._model = tf.saved_model.load(str(path))
        self._lock = threading.Lock()

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A signature's outputs; one call at a time, whose memory the tiles are chosen for."""
        import tensorflow as tf

        with self._lock:
            tensors = {name: tf.constant(_plain(array)) for name, array in inputs.items()}
            outputs = self._model.signatures[signature](**tensors)
            return {name: np.asarray(value) for name, value in outputs.items()}  # no copies


def _plain(array: np.ndarray) -> Any:
    """Texts as TensorFlow takes them."""
    return array.tolist() if array.dtype.hasobject and array.size else array
