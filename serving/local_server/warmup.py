"""Replays the warmup requests of a SavedModel, so that no client waits for XLA to compile."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import grpc
import tensorflow as tf
from absl import logging
from google.protobuf import message
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.local_server import predict
from serving.local_server.errors import ServingError, from_tensorflow, invalid_argument
from serving.local_server.servable import Servable
from serving.shared.warmup_file import FILE

_MAX_RECORDS = 1000  # TF Serving's
_AT_ONCE = 2  # requests beside each other: what takes time is to compile their programs; each takes its memory


def replay(servable: Servable, max_bytes: int) -> int:
    """Asks a version everything that its warmup file has, and returns how many requests that were.

    Args:
      servable: the version, loaded.
      max_bytes: largest input.

    Raises:
      ServingError: if the file is not one of at most 1000 predict records, or a request fails.
    """
    path = servable.path / FILE
    if not path.is_file():
        logging.info("no warmup requests in %s", path)
        return 0

    def ask(number: int, record: bytes) -> None:
        try:
            if number > _MAX_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {path}")
            predict.predict(servable, _request(record, path), max_bytes=max_bytes)
        except ServingError as error:
            raise ServingError(error.code, f"warmup request {number}: {error}") from None

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
            count = len(list(pool.map(ask, itertools.count(1), itertools.islice(records, _MAX_RECORDS + 1))))
    except tf.errors.OpError as error:
        wrong = from_tensorflow(error)
        raise ServingError(
            wrong.code, f"{wrong}. Please verify your warmup data is in TFRecord format: {path}"
        ) from None
    logging.info("replayed %d warmup requests of %s", count, path)
    return count


def _request(record: bytes, path: object) -> predict_pb2.PredictRequest:
    log = prediction_log_pb2.PredictionLog()
    try:
        log.ParseFromString(record)
    except message.DecodeError:
        raise invalid_argument(f"Failed to parse warmup record from {path}") from None
    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
    return log.predict_log.request
