"""The warmup requests of a SavedModel, in TF Serving's own format: a TFRecord file of PredictionLogs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

FILE = "assets.extra/tf_serving_warmup_requests"  # where TF Serving looks for it


def request_of_one_value(
    signature: str, inputs: Mapping[str, tf.TensorSpec], values: Mapping[str, Any] | None = None
) -> predict_pb2.PredictRequest:
    """A request with inputs of these shapes, each one value throughout; small whatever the shapes are.

    Args:
      signature: its name.
      inputs: shapes and dtypes.
      values: for inputs that cannot be anything their value; others are zero, or an empty text.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = signature
    for name, spec in inputs.items():
        value = (values or {}).get(name, "" if spec.dtype == tf.string else 0)
        # Once, which a reader repeats to fill the shape; never if it is empty.
        proto = tf.make_tensor_proto(value, spec.dtype, [1] if spec.shape.num_elements() else [0])
        proto.tensor_shape.CopyFrom(spec.shape.as_proto())
        request.inputs[name].CopyFrom(proto)
    return request


def write_requests(saved_model: Path, requests: Iterable[predict_pb2.PredictRequest]) -> None:
    """Writes the file of the SavedModel in this directory."""
    path = saved_model / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


def read_requests(saved_model: Path) -> Iterator[predict_pb2.PredictRequest]:
    """The requests in the file of the SavedModel in this directory; none if it has no such file.

    Raises:
      ValueError: the file is not what TF Serving would read.
    """
    path = saved_model / FILE
    if not path.is_file():
        return
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            if not log.HasField("predict_log"):
                raise ValueError(f"expected predict logs, received {log.WhichOneof('log_type')}")
            yield log.predict_log.request
    except Exception as error:  # of protobuf, of TF's reader
        raise ValueError(f"{path} is no file of warmup requests: {str(error).splitlines()[0]}") from error
