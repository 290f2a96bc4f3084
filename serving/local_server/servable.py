"""One version of a model: a SavedModel in a TensorFlow session, as TF Serving runs it.

A session, and not `tf.saved_model.load`: closing it frees everything that belongs to the version, the programs that XLA
compiled for it among them, which the eager runtime keeps until the process ends. A call also costs 20 instead of 145
microseconds (four floats on two CPU cores), and errors are TF Serving's.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format

from serving.local_server.errors import ServingError, from_tensorflow, invalid_argument
from serving.shared.batching_parameters import BatchingParameters
from serving.shared.model_server import session_config
from serving.shared.tensorflow_names import SavedModelLoader, config_pb2, dismantle_graph, make_callable, meta_graph_pb2

DEFAULT_SIGNATURE = "serving_default"
_CALLABLES = 64  # kept, of those for each signature and choice of outputs
_METHODS = ("tensorflow/serving/predict", "tensorflow/serving/classify", "tensorflow/serving/regress")


class Servable:
    """A loaded version. `run` may be called by any number of threads; `close` when none does any more."""

    def __init__(self, path: pathlib.Path, version: int, batching: BatchingParameters | None = None) -> None:
        """Loads the SavedModel at `path`; `batching` says how its requests are joined, None that they are not.

        Raises:
          Exception: of any kind that TensorFlow raises for a SavedModel that cannot be loaded.
        """
        self.path = path
        self.version = version
        self.batching = batching
        config = text_format.Parse(session_config(), config_pb2.ConfigProto(allow_soft_placement=True))
        config.gpu_options.allow_growth = True  # two versions are loaded during a swap
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            meta_graph = SavedModelLoader(str(path)).load(self._session, [tf.saved_model.SERVING])
        except BaseException:
            self._session.close()
            dismantle_graph(self._session.graph)
            raise
        # Copies, because a part of a message keeps all of it in memory, and the graph may be large.
        self.signatures = {name: _copy(signature) for name, signature in meta_graph.signature_def.items()}
        self._callable = functools.lru_cache(_CALLABLES)(
            functools.partial(_make_callable, self._session, self.signatures)
        )

    def signature(self, name: str) -> meta_graph_pb2.SignatureDef:
        """A signature that can be asked to predict.

        Raises:
          ServingError: if there is none of this name.
        """
        signature = self.signatures.get(name)
        if signature is None:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        if signature.method_name not in _METHODS:
            raise ServingError(
                grpc.StatusCode.INTERNAL,
                f"Expected prediction signature method_name to be one of {{{', '.join(_METHODS)}}}. "
                f"Was: {signature.method_name}",
            )
        return signature

    def run(self, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
          name: of the signature.
          inputs: an array for each of the signature's inputs.
          outputs: the wanted ones; all if empty.

        Raises:
          ServingError: with what TensorFlow says to these inputs.
        """
        signature = self.signatures[name]
        wanted = tuple(outputs) or tuple(sorted(signature.outputs))
        try:
            call, feeds = self._callable(name, wanted)
            arrays = [inputs[alias] for alias, _ in feeds]
            for i, (array, (_, dtype)) in enumerate(zip(arrays, feeds, strict=True)):
                if array.dtype != dtype:
                    # The callable would say it in other words than the session's own entry.
                    given = _name(array.dtype)
                    raise invalid_argument(f"Expects arg[{i}] to be {_name(dtype)} but {given} is provided")
            results = call(*arrays)
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        return dict(zip(wanted, map(_as_array, results), strict=True))

    def close(self) -> None:
        """Frees the model now, rather than when Python next looks for cycles, which graphs are full of."""
        self._callable.cache_clear()
        self._session.close()
        dismantle_graph(self._session.graph)


def _make_callable(
    session: tf.compat.v1.Session,
    signatures: Mapping[str, meta_graph_pb2.SignatureDef],
    name: str,
    outputs: tuple[str, ...],
) -> tuple[Any, list[tuple[str, np.dtype]]]:
    """A function of arrays, and for each of them the input's alias and dtype. Feeds are ordered by tensor name."""
    signature = signatures[name]
    inputs = sorted(signature.inputs.items(), key=lambda item: item[1].name)
    options = config_pb2.CallableOptions(
        feed=[info.name for _, info in inputs], fetch=[signature.outputs[alias].name for alias in outputs]
    )
    dtypes = [np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype) for _, info in inputs]
    aliases = [alias for alias, _ in inputs]
    return make_callable(session, options), list(zip(aliases, dtypes, strict=True))


def _as_array(result: Any) -> np.ndarray:
    """A session returns scalars as NumPy's scalars, and a scalar text as bytes."""
    return np.array(result, object) if isinstance(result, bytes) else np.asarray(result)


def _copy(signature: meta_graph_pb2.SignatureDef) -> meta_graph_pb2.SignatureDef:
    copy = meta_graph_pb2.SignatureDef()
    copy.CopyFrom(signature)
    return copy


def _name(dtype: np.dtype) -> str:
    """As TensorFlow's C++ names a dtype."""
    name: str = tf.dtypes.as_dtype(dtype).name
    return {"float32": "float", "float64": "double", "float16": "half"}.get(name, name)
