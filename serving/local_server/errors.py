"""Errors as TF Serving's protocols carry them: a canonical code and a message."""

from __future__ import annotations

import grpc
import tensorflow as tf
from tensorflow_serving.apis import model_pb2

_CODES = {code.value[0]: code for code in grpc.StatusCode}

# As TF Serving's HTTP server maps them.
_HTTP = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}


class ServingError(Exception):
    """A request cannot be answered; `code` and the text are what the client receives."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        """`message` is TF Serving's where TF Serving has one."""
        super().__init__(message)
        self.code = code

    @property
    def http_status(self) -> int:
        """The status of an HTTP answer."""
        return _HTTP[self.code]


class OverloadedError(ServingError):
    """More requests than the server takes; try again later."""

    def __init__(self, message: str) -> None:
        """`message` says how many are too many."""
        super().__init__(grpc.StatusCode.RESOURCE_EXHAUSTED, message)

    @property
    def http_status(self) -> int:
        """Service unavailable: the client need not be the one who asks for too much."""
        return 503


class CancelledError(ServingError):
    """The client does not wait for the answer any more."""

    def __init__(self) -> None:
        """Nobody reads the message."""
        super().__init__(grpc.StatusCode.CANCELLED, "The client has gone.")


def deadline_exceeded(message: str) -> ServingError:
    """The client's deadline, or the server's for REST, has come."""
    return ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def resource_exhausted(message: str) -> ServingError:
    """The answer is larger than the server may send."""
    return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def invalid_argument(message: str) -> ServingError:
    """The request itself is wrong."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """There is no such model or version."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def unknown_servable(spec: model_pb2.ModelSpec, version: int | None = None) -> ServingError:
    """What a request asks for is not served; `version` is what its label stands for."""
    wanted = spec.version.value if spec.HasField("version") else version
    return not_found(
        f"Servable not found for request: Latest({spec.name})"
        if spec.WhichOneof("version_choice") is None
        else f"Servable not found for request: Specific({spec.name}, {wanted})"
    )


def unknown_label(spec: model_pb2.ModelSpec) -> ServingError:
    """The model has no such label."""
    return invalid_argument(f"Unrecognized servable version label: {spec.version_label}")


def from_tensorflow(error: tf.errors.OpError) -> ServingError:
    """What TensorFlow's runtime said, in its own words."""
    return ServingError(_CODES.get(error.error_code, grpc.StatusCode.UNKNOWN), error.message)
