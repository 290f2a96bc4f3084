"""A SavedModel in this process, with no compilation left for its first requests."""

from __future__ import annotations

import functools
import os
from concurrent import futures
from pathlib import Path
from typing import Any

import tensorflow as tf

from serving.shared.warmup_file import read_requests

_MOST = 4  # requests of a warmup at a time, since each may need the export's memory budget


def load(path: str | Path, *, warmup: bool = False) -> Any:
    """`tf.saved_model.load`, and with `warmup` every request of the SavedModel's warmup file, made once.

    After the warmup requests of any size find their XLA programs compiled. What is compiled is freed when the process
    ends. Methods are called where there are both; the first call of a signature still makes its graph, of the same
    programs.

    Args:
      path: of the SavedModel's version, such as BASE_DIR/1.
      warmup: whether to compile now what requests need: as many requests at a time as there are cores, up to four.

    Raises:
      OSError: there is no SavedModel.
      ValueError: its warmup file is damaged.
    """
    model = tf.saved_model.load(str(path))
    if warmup:
        with futures.ThreadPoolExecutor(min(_MOST, os.cpu_count() or 1)) as threads:
            for _ in threads.map(functools.partial(_ask, model), list(read_requests(Path(path)))):
                pass
    return model


def _ask(model: Any, request: Any) -> None:
    name = request.model_spec.signature_name
    inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in request.inputs.items()}
    # A request without examples is there for the signature's own graph.
    plain = set(inputs) <= {"x", "x1", "x2"} and all(value.shape[0] for value in inputs.values())
    (getattr(model, name) if plain else model.signatures[name])(**inputs)
