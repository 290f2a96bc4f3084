"""A SavedModel in this process, with no compilation left for its first requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from serving.shared.warmup_file import read_requests


def load(path: str | Path, *, warmup: bool = False) -> Any:
    """`tf.saved_model.load`, and with `warmup` every request of the SavedModel's warmup file, made once.

    After the warmup requests of any size find their XLA programs compiled. What is compiled is freed when the process
    ends.

    Args:
      path: of the SavedModel's version, such as BASE_DIR/1.
      warmup: whether to compile now what requests need.

    Raises:
      OSError: there is no SavedModel.
      ValueError: its warmup file is damaged.
    """
    model = tf.saved_model.load(str(path))
    for request in read_requests(Path(path)) if warmup else ():
        name = request.model_spec.signature_name
        inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in request.inputs.items()}
        model.signatures[name](**inputs)
        # The method is a graph of its own, of the same programs. A request without examples is there for these alone.
        if set(inputs) <= {"x", "x1", "x2"} and all(value.shape[0] for value in inputs.values()):
            getattr(model, name)(**inputs)
    return model
