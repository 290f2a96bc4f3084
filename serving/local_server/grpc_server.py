"""The gRPC side: TF Serving's official services over grpcio."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from absl import logging
from grpc_health.v1 import health, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.local_server.errors import ServingError
from serving.local_server.service import Service
from serving.shared.addresses import host_port

_FOREVER = float("inf")
_MESSAGE = 1024  # characters that TF Serving sends of an error


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the rest of the service is UNIMPLEMENTED."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        remaining = context.time_remaining()
        deadline = _FOREVER if remaining is None else time.monotonic() + remaining
        return _answer(
            self._service,
            "Predict",
            request,
            context,
            lambda message: self._service.predict(message, deadline, context.is_active),
        )

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _answer(self._service, "GetModelMetadata", request, context, self._service.metadata)


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; HandleReloadConfigRequest, which could name a path, is UNIMPLEMENTED."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _answer(self._service, "GetModelStatus", request, context, self._service.status)


def _answer(service: Service, api: str, request: Any, context: grpc.ServicerContext, call: Callable[[Any], Any]) -> Any:
    """The response, or the error that ends the call; either is recorded."""
    begin = time.monotonic()
    code, message, response = grpc.StatusCode.OK, "", None
    try:
        response = call(request)
    except ServingError as error:
        code, message = error.code, str(error)
    except Exception as error:
        logging.exception("a request failed")
        code, message = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    service.metrics.record("GRPC", api, request.model_spec.name, code, time.monotonic() - begin)
    if code is not grpc.StatusCode.OK:
        context.abort(code, message if len(message) <= _MESSAGE else f"{message[:_MESSAGE]}...TRUNCATED")
    return response


def start(service: Service, health_servicer: health.HealthServicer, workers: int) -> tuple[grpc.Server, int]:
    """Starts to serve, and returns the server and its port.

    Raises:
      OSError: if the port cannot be had.
    """
    options = service.options
    server = grpc.server(
        futures.ThreadPoolExecutor(workers, thread_name_prefix="grpc"),
        options=(
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", options.max_message_bytes),
            ("grpc.so_reuseport", 0),
        ),
        maximum_concurrent_rpcs=workers,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(service), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(service), server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    address = host_port(options.host, options.grpc_port)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address} for gRPC; choose another port: {error}") from error
    server.start()
    return server, port
