"""A small SavedModel with the signatures of answers, written without what fits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.shared.exports import MANIFEST


class Answers(tf.Module):
    """Answers about its references: those of the reference that an example is nearest to."""

    def __init__(self, x: np.ndarray, cosines: np.ndarray, ids: np.ndarray, mean: np.ndarray, neighbors: int) -> None:
        shape = [None, *x.shape[1:]]
        flat = x.reshape(len(x), -1)
        order = np.argsort(-cosines, axis=1)[:, :neighbors]
        self.flat = tf.Variable(flat)
        self.ids = tf.Variable(ids[order]) if ids.dtype.kind in "iu" else tf.constant(ids[order].tolist())
        self.similarity = tf.Variable(np.take_along_axis(cosines, order, 1))
        self.mean = tf.Variable(mean)
        spec = [tf.TensorSpec(shape, tf.float32, "x")]

        def row(x: tf.Tensor) -> tf.Tensor:
            x = tf.reshape(x, [-1, flat.shape[1]])
            distances = tf.reduce_sum((x[:, None] - self.flat[None]) ** 2, -1)
            return tf.argmin(distances, 1)

        def predict(x: tf.Tensor) -> dict[str, tf.Tensor]:
            mean = tf.gather(self.mean, row(x))
            novelty = tf.linspace(0.0, 1.0, tf.shape(mean)[0])
            return {"mean": mean, "variance": tf.fill([tf.shape(mean)[0]], 0.25), "novelty": novelty}

        def nearest(x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"id": tf.gather(self.ids, row(x)), "similarity": tf.gather(self.similarity, row(x))}

        def support(x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"id": tf.gather(self.ids, row(x)), "weight": tf.gather(self.similarity, row(x)) - 0.5}

        self.functions = {f.__name__: tf.function(f, input_signature=spec) for f in (predict, nearest, support)}


def save_answers(
    base: Path, x: np.ndarray, cosines: np.ndarray, ids: np.ndarray, mean: np.ndarray, recorded: dict[str, Any]
) -> Path:
    """Writes version 1 below a base directory, with what the manifest records of the answers."""
    module = Answers(x, cosines.astype(np.float32), ids, mean.astype(np.float32), 5)
    path = base / "1"
    tf.saved_model.save(module, str(path), {"serving_default": module.functions["predict"], **module.functions})
    (path / MANIFEST).parent.mkdir(exist_ok=True)
    answers = {"method": "exact", "references": len(x), "kept": len(x), "neighbors": 5, "ridge": 1e-3, **recorded}
    answers["ridge_curve"] = {"ridge": [1e-4, 1e-3, 1e-2], "loss": [0.3, 0.2, 0.25]}
    (path / MANIFEST).write_text(json.dumps({"answers": answers}), encoding="utf-8")
    return base
