"""A small model with the signatures of an exported kernel, written in a second without JAX."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

FEATURES, OUTPUTS = 4, 3
SIGNATURES = ("ntk", "ntk_symmetric", "ntk_diagonal", "forward", "busy", "text")
VOCABULARY = ("a", "b", "ä")
X = np.array([[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]], np.float32)


class LinearKernel(tf.Module):
    """f(x) = x w + b, all entries of w and b being `scale`, so that versions can be told apart by their answers."""

    def __init__(self, scale: float) -> None:
        self.w = tf.Variable(np.full((FEATURES, OUTPUTS), scale, np.float32))
        self.ntk = _served(lambda x1, x2: {"ntk": self._kernel(x1, x2)}, "x1", "x2")
        self.ntk_symmetric = _served(lambda x: {"ntk": self._kernel(x, x)}, "x")
        self.ntk_diagonal = _served(lambda x: {"ntk": tf.reduce_sum((x @ self.w) ** 2, 1)}, "x")
        self.forward = _served(lambda x: {"output": x @ self.w}, "x")
        self.busy = tf.function(_busy, autograph=False, input_signature=[tf.TensorSpec([], tf.float32, name="seconds")])
        self.text = tf.function(
            lambda x: {"y_bytes": x, "length": tf.strings.length(x)},
            autograph=False,
            input_signature=[tf.TensorSpec([None], tf.string, name="x")],
        )

    def _kernel(self, x1: tf.Tensor, x2: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x1 @ self.w, x2 @ self.w, transpose_b=True)


class Words(tf.Module):
    """Takes texts: where they are in a vocabulary, which is a file of the SavedModel, and what they are in capitals."""

    def __init__(self, vocabulary: Path) -> None:
        words, lines = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        source = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, words, tf.int64, lines)
        self.table = tf.lookup.StaticHashTable(source, default_value=-1)
        texts = [tf.TensorSpec([None, 2], tf.string, name) for name in ("words", "x")]
        self.lookup = tf.function(self._lookup, autograph=False, input_signature=texts[:1])
        self.forward = tf.function(self._forward, autograph=False, input_signature=texts[1:])

    def _lookup(self, words: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"place": self.table.lookup(words), "upper_bytes": tf.strings.upper(words, encoding="utf-8")}

    def _forward(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """How many of the words of an example are known."""
        known = tf.cast(self.table.lookup(x) >= 0, tf.float32)
        return {"output": tf.reduce_sum(known, axis=1, keepdims=True)}


def _busy(seconds: tf.Tensor) -> dict[str, tf.Tensor]:
    """Computes for so long, and says how long it was."""
    begin = tf.timestamp()
    (end,) = tf.while_loop(
        lambda now: now < begin + tf.cast(seconds, tf.float64), lambda now: [tf.timestamp()], [begin]
    )
    return {"seconds": tf.cast(end - begin, tf.float32)}


def _served(function, *names):
    signature = [tf.TensorSpec([None, FEATURES], tf.float32, name=name) for name in names]
    return tf.function(function, jit_compile=True, autograph=False, input_signature=signature)


def forward(x: np.ndarray, scale: float) -> np.ndarray:
    """What the model of this scale answers."""
    return x @ np.full((FEATURES, OUTPUTS), scale, np.float32)


def save_version(base: Path, version: int, scale: float = 1.0, warmup: list | None = None) -> Path:
    """Writes a version as an exporter does: beside the base directory, then renamed into it.

    `warmup` are the records of its warmup file: PredictionLogs or bytes.
    """
    model = LinearKernel(scale)
    signatures = {"serving_default": model.ntk}
    signatures |= {name: getattr(model, name) for name in SIGNATURES}
    beside = base.parent / f"{base.name}.{version}.writing"
    tf.saved_model.save(model, str(beside), signatures=signatures)
    if warmup is not None:
        (beside / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(beside / "assets.extra" / "tf_serving_warmup_requests")) as writer:
            for record in warmup:
                writer.write(record if isinstance(record, bytes) else record.SerializeToString())
    base.mkdir(exist_ok=True)
    path = base / str(version)
    os.rename(beside, path)
    return path


def save_words(base: Path, version: int) -> Path:
    """Writes a version of `Words`, whose vocabulary's own file is gone then."""
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocabulary.txt"
        vocabulary.write_text("\n".join(VOCABULARY), encoding="utf-8")
        model = Words(vocabulary)
        path = base / str(version)
        tf.saved_model.save(model, str(path), {"serving_default": model.lookup, "forward": model.forward})
    return path


def copy_version(source: Path, base: Path, version: int) -> Path:
    """Publishes a version that was written before once more, atomically."""
    beside = base.parent / f"{base.name}.{version}.writing"
    shutil.copytree(source, beside)
    base.mkdir(exist_ok=True)
    os.rename(beside, base / str(version))
    return base / str(version)


def predict_request(model: str = "m", signature: str = "", outputs: tuple[str, ...] = (), **inputs):
    """A PredictRequest with these arrays."""
    request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=model, signature_name=signature), output_filter=outputs
    )
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def warmup_record(signature: str = "forward", **inputs):
    """A record of a warmup file."""
    log = prediction_log_pb2.PredictLog(request=predict_request("", signature, **inputs))
    return prediction_log_pb2.PredictionLog(predict_log=log)
