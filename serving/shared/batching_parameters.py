"""TF Serving's BatchingParameters: of a model, in a file of each version, and of a server, which its models share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from google.protobuf import text_format

from serving.shared.protos import message_classes

FILE = "batching_params.pbtxt"  # in a version's directory, read with --enable_per_model_batching_parameters
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of batches, so that none meets a size that no warmup called

_WAIT_MICROSECONDS = 500  # for further requests, while a thread is free
_QUEUE = 64  # batches

# tensorflow-serving-api does not have it (session_bundle_config.proto).
_Message = message_classes(
    {
        "Int64Value": {"value": (1, "int64")},
        "StringValue": {"value": (1, "string")},
        "BatchingParameters": {
            "max_batch_size": (1, "Int64Value"),
            "batch_timeout_micros": (2, "Int64Value"),
            "max_enqueued_batches": (3, "Int64Value"),
            "num_batch_threads": (4, "Int64Value"),
            "thread_pool_name": (5, "StringValue"),
            "allowed_batch_sizes": (6, "[]int64"),
        },
    }
)["BatchingParameters"]


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """How requests of a model are joined; the defaults are TF Serving's.

    Attributes:
      max_batch_size: rows of a batch, and of a request.
      batch_timeout_micros: how long a batch waits for further requests, while a thread is free.
      max_enqueued_batches: of a signature; a request that would begin one more is refused.
      allowed_batch_sizes: batches are filled up to one of these, increasing, the last the largest batch; any if empty.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        """In text format."""
        message = _Message()
        message.max_batch_size.value = self.max_batch_size
        message.batch_timeout_micros.value = self.batch_timeout_micros
        message.max_enqueued_batches.value = self.max_enqueued_batches
        message.allowed_batch_sizes.extend(self.allowed_batch_sizes)
        return text_format.MessageToString(message)


def of_version(version: Path) -> BatchingParameters | None:
    """What a version's own file says; None if it has none, so that its requests must not be joined.

    Raises:
      ValueError: the file is not one that TF Serving could serve.
    """
    path = version / FILE
    if not path.is_file():
        return None
    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), _Message(), allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected BatchingParameters in text format: {error}") from None
    given = {
        field.name: getattr(message, field.name).value
        for field in dataclasses.fields(BatchingParameters)
        if field.name != "allowed_batch_sizes" and message.HasField(field.name)
    }
    parameters = BatchingParameters(**given, allowed_batch_sizes=tuple(message.allowed_batch_sizes))
    sizes = parameters.allowed_batch_sizes
    if sizes and (sizes[-1] != parameters.max_batch_size or list(sizes) != sorted({*sizes})):
        raise ValueError(
            f"{path}: expected allowed_batch_sizes to increase up to max_batch_size, {parameters.max_batch_size}, "
            f"received {list(sizes)}"
        )
    return parameters


def of_rows() -> BatchingParameters:
    """Of a model all of whose signatures have independent rows."""
    return BatchingParameters(SIZES[-1], _WAIT_MICROSECONDS, _QUEUE, SIZES)


def of_server(threads: int) -> str:
    """The BatchingParameters of a server, in text format: the threads that all batched models share."""
    message = _Message()
    message.num_batch_threads.value = threads
    message.thread_pool_name.value = "batching"
    return text_format.MessageToString(message)
