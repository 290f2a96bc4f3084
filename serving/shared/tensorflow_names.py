"""What serving uses of TensorFlow that is not its public API. Seen in TensorFlow 2.19 to 2.21.

Imported here and nowhere else in `serving`, with the reason; it takes seconds, since it imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# The messages that TF Serving's protocol and the files of a SavedModel consist of: the formats are kept, the modules
# are not documented.
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2

# Frees a graph now; Python would find its cycles later.
from tensorflow.python.framework.ops import dismantle_graph

# tf.compat.v1.saved_model.load is the same with a warning that sessions are old.
from tensorflow.python.saved_model.loader_impl import SavedModelLoader

__all__ = [
    "SavedModelLoader",
    "config_pb2",
    "dismantle_graph",
    "make_callable",
    "meta_graph_pb2",
    "saved_model_pb2",
    "tensor_pb2",
    "types_pb2",
]


def make_callable(session: tf.compat.v1.Session, options: config_pb2.CallableOptions) -> Callable[..., Any]:
    """A function of the fed arrays, in the order of `options.feed`: what `Session.run` does in 20 microseconds."""
    return session._make_callable_from_options(options)
