"""What the server does, whatever protocol asks: both speak to this one object."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from serving.local_server import json_document, predict
from serving.local_server.admission import Admission
from serving.local_server.batching import Batching
from serving.local_server.errors import CancelledError, deadline_exceeded
from serving.local_server.metrics import Metrics
from serving.local_server.models import Models
from serving.local_server.options import ServerOptions
from serving.local_server.predict import Run
from serving.local_server.servable import Servable


class Service:
    """TF Serving's three calls on messages."""

    def __init__(self, models: Models, options: ServerOptions) -> None:
        """`models` has what is served."""
        self.options = options
        self._models = models
        self._admission = Admission(options.max_concurrency, options.max_queue)
        self._batching = Batching(self._admission, options.max_concurrency)
        names = [manager.options.name for manager in models.managers()]
        self.metrics = Metrics(names, log_requests=options.log_requests)
        self.metrics.gauge("ntk_serving_running", "Requests that are computed.", lambda: self._admission.running)
        waiting = "Requests that wait for a place or a batch."
        self.metrics.gauge("ntk_serving_waiting", waiting, lambda: self._admission.waiting)

    def predict(
        self, request: predict_pb2.PredictRequest, deadline: float, wanted: Callable[[], bool]
    ) -> predict_pb2.PredictResponse:
        """Computes.

        Args:
          request: what to compute.
          deadline: until when the client waits, on the clock of `time.monotonic`.
          wanted: whether the client still waits.

        Raises:
          ServingError: with what the client receives.
        """
        with self._admitted(predict.check_model_spec(request), deadline, wanted) as (servable, run):
            return predict.predict(servable, run, request, max_bytes=self.options.max_message_bytes)

    def predict_json(
        self, spec: model_pb2.ModelSpec, body: bytes, deadline: float, wanted: Callable[[], bool]
    ) -> bytes:
        """As `predict`, from the body of a REST request to the body of the answer."""
        with self._admitted(spec, deadline, wanted) as (servable, run):
            document = json_document.parse(body)
            return predict.predict_json(servable, run, document, max_bytes=self.options.max_message_bytes)

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of a version.

        Raises:
          ServingError: with what the client receives.
        """
        predict.check_metadata_request(request)
        with self._models.lookup(request.model_spec) as servable:
            return predict.metadata(servable, request)

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of versions.

        Raises:
          ServingError: with what the client receives.
        """
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in self._models.statuses(predict.check_model_spec(request)):
            entry = response.model_version_status.add(version=status.version, state=status.state)
            entry.status.error_code = status.code.value[0]
            entry.status.error_message = status.message
        return response

    def stop(self) -> None:
        """Frees the threads of batches, once no request is computed any more."""
        self._batching.stop()

    @contextlib.contextmanager
    def _admitted(
        self, spec: model_pb2.ModelSpec, deadline: float, wanted: Callable[[], bool]
    ) -> Iterator[tuple[Servable, Run]]:
        """What is asked and what computes it: at a place of its own, or else in batches, which take one each."""
        with self._admission.admitted(), self._models.lookup(spec) as servable:
            batching = servable.batching
            with self._admission.place(deadline) if batching is None else contextlib.nullcontext():
                if not wanted():
                    raise CancelledError
                if time.monotonic() >= deadline:
                    raise deadline_exceeded("Deadline exceeded before the computation.")
                if batching is None:
                    yield servable, servable.run
                else:
                    yield servable, functools.partial(self._batching.run, servable, batching, deadline)
