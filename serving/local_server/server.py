"""The embedded server: model manager, gRPC and REST together."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import types
from collections.abc import Sequence

import grpc
from absl import logging
from grpc_health.v1 import health, health_pb2

from serving.local_server import grpc_server, warmup
from serving.local_server.models import Models
from serving.local_server.options import ModelOptions, ServerOptions
from serving.local_server.rest_api import RestApi
from serving.local_server.rest_server import RestServer
from serving.local_server.servable import Servable
from serving.local_server.service import Service
from serving.shared import batching_parameters
from serving.shared.addresses import host_port, listen

_ALWAYS_FREE = 4  # threads for status and health while all others compute or wait


class LocalServer:
    """Serves models over TF Serving's gRPC and REST APIs.

    with LocalServer(ModelOptions("base_dir", name="digits")) as server:
        ...  # server.grpc_address, server.rest_address: "127.0.0.1:PORT"
    """

    def __init__(
        self,
        models: str | os.PathLike[str] | ModelOptions | Sequence[ModelOptions],
        options: ServerOptions | None = None,
    ) -> None:
        """Prepares; `start` or the context loads and serves.

        Args:
          models: what to serve; a path is a base directory of a model with the name "default".
          options: where and within which limits.
        """
        if isinstance(models, str | os.PathLike):
            models = ModelOptions(pathlib.Path(models))
        self.options = options or ServerOptions()
        self.models = Models(
            [models] if isinstance(models, ModelOptions) else models, self.options.poll_seconds, self._load
        )
        self._service = Service(self.models, self.options)
        self._health = health.HealthServicer()
        self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        self._stopped = threading.Event()
        self._grpc: grpc.Server
        self._grpc_port: int
        self._rest: RestServer

    @property
    def grpc_port(self) -> int:
        """The port of gRPC, once it has been started."""
        return self._grpc_port

    @property
    def rest_port(self) -> int:
        """The port of REST, once it has been started."""
        return self._rest.port

    @property
    def grpc_address(self) -> str:
        """host:port of gRPC."""
        return host_port(self.options.host, self.grpc_port)

    @property
    def rest_address(self) -> str:
        """host:port of REST."""
        return host_port(self.options.host, self.rest_port)

    def start(self) -> None:
        """Loads and warms the versions, then opens both ports.

        Raises:
          RuntimeError: if a model has no version that can be served.
          OSError: if a port cannot be had.
        """
        for port, protocol in ((self.options.grpc_port, "gRPC"), (self.options.rest_port, "REST")):
            listen(self.options.host, port, protocol).close()  # what is taken is said before the models load
        with contextlib.ExitStack() as undo:
            undo.callback(self.models.stop, 0)
            self.models.start()
            workers = self.options.max_concurrency + self.options.max_queue + _ALWAYS_FREE
            self._grpc, self._grpc_port = grpc_server.start(self._service, self._health, workers)
            undo.callback(self._grpc.stop, 0)
            self._rest = RestServer(RestApi(self._service), self.options, workers)
            undo.pop_all()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        logging.info("gRPC on %s, REST on %s", self.grpc_address, self.rest_address)

    def stop(self) -> None:
        """Accepts no more, lets requests finish within `shutdown_seconds`, and frees the models; once."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._health.enter_graceful_shutdown()
        finished = self._grpc.stop(self.options.shutdown_seconds)
        self._rest.stop()
        finished.wait()
        self._service.stop()
        self.models.stop(self.options.shutdown_seconds)

    def __enter__(self) -> LocalServer:
        """Starts."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Stops."""
        self.stop()

    def _load(self, model: ModelOptions, path: pathlib.Path, version: int) -> Servable:
        batching = batching_parameters.of_version(path) if self.options.batching else None
        servable = Servable(path, version, batching)
        if self.options.warmup:
            try:
                warmup.replay(servable, self.options.max_message_bytes, self.options.max_concurrency)
            except BaseException:
                servable.close()
                raise
        return servable
