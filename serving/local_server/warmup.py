"""Replays the warmup requests of a SavedModel, so that no client waits for XLA to compile."""

from __future__ import annotations

import pathlib
from concurrent import futures

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


def replay(servable: Servable, max_bytes: int, threads: int = 1) -> int:
    """Asks a version everything that its warmup file has, and returns how many requests that were.

    Args:
      servable: the version, loaded.
      max_bytes: largest input.
      threads: requests at a time, which begin in their order.

    Raises:
      ServingError: if the file is not one of at most 1000 predict records, or a request fails; of several the first.
    """
    path = servable.path / FILE
    if not path.is_file():
        logging.info("no warmup requests in %s", path)
        return 0

    def ask(record: bytes) -> None:
        predict.predict(servable, servable.run, _request(record, path), max_bytes=max_bytes)

    records, done = _records(path), 0
    with futures.ThreadPoolExecutor(threads, thread_name_prefix="warmup") as pool:
        try:
            asked = [pool.submit(ask, record) for record in records]
            for one in asked:
                one.result()
                done += 1
        except ServingError as error:
            raise ServingError(error.code, f"warmup request {done + 1}: {error}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    logging.info("replayed %d warmup requests of %s", done, path)
    return done


def _records(path: pathlib.Path) -> list[bytes]:
    """The records of a warmup file; raises ServingError if TF Serving would not read it."""
    try:
        records = list(tf.data.TFRecordDataset(str(path)).take(_MAX_RECORDS + 1).as_numpy_iterator())
    except tf.errors.OpError as error:
        wrong = from_tensorflow(error)
        raise ServingError(
            wrong.code, f"{wrong}. Please verify your warmup data is in TFRecord format: {path}"
        ) from None
    if len(records) > _MAX_RECORDS:
        raise invalid_argument(f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {path}")
    return records


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
