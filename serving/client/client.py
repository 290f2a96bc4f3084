"""The client: kernels of NumPy arrays from a server, whatever their size."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from serving.client import calls, tensors
from serving.client.arguments import named_inputs, param_inputs, side_inputs
from serving.client.calls import Call, Request
from serving.client.connection import Connection
from serving.client.errors import BATCHING_CURE, ServingError, largest_batch
from serving.client.grpc_transport import GrpcTransport
from serving.client.model import (
    MANIFEST_SIGNATURE,
    ModelRef,
    Prediction,
    ServedModel,
    SignatureSpec,
    VersionStatus,
)
from serving.client.parallel import run_all
from serving.client.rest_transport import RestTransport
from serving.client.transport import Transport
from serving.shared.progress import Progress

T = TypeVar("T")

_SWAPS = 3  # versions that may be replaced under one call before it gives up


class Client:
    """A connection to a server of exported kernels. Methods may be called from several threads.

        with serving.Client("localhost:8500", model="digits") as client:
            kernel = client.kernel(x1, x2)

    Calls that do not fit one message are split into requests that are sent several at a time, all to one version. They
    are repeated while the server is unavailable or busy; each is a pure function of its inputs. Every answer's shape is
    checked. Arrays are converted to the dtype of the model's input where NumPy calls that the same kind (float64 to
    float32). A model with several inputs takes for each side a dict by input, or a tuple in their order.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str = "default",
        version: int | None = None,
        label: str | None = None,
        deadline: float | None = 600.0,
        message_limit: int = 128 * 2**20,
        concurrency: int = 2,
        progress: bool | None = None,
    ) -> None:
        """Connects when first used.

        Args:
          address: "host:port" for gRPC ("grpcs://host:port" for encrypted gRPC), "http://host:port" or
            "https://host:port" for REST.
          model: the model's name on the server; "default" is TF Serving's own default.
          version: the version to ask; by default the latest.
          label: of the version to ask, as the server's model config assigns labels.
          deadline: seconds that one request may take, its repetitions included; a call that is split sends several.
            None for no limit.
          message_limit: bytes of the largest request or result in one message. gRPC's own limit for results is 4 MB;
            this client's is this one. Larger messages are faster, and take more memory on both sides.
          concurrency: requests of one call that are under way at the same time.
          progress: whether to show on standard error how far a call is that was split; by default if that is a terminal
            and it takes long.

        Raises:
          ValueError: an option is out of its range, or both a version and a label are given.
        """
        if version is not None and label is not None:
            raise ValueError(f"expected a version or a label, received version={version} and label={label!r}")
        if version is not None and not 0 <= version < 2**63:
            raise ValueError(f"expected a version from 0 to {2**63 - 1}, received {version}")
        if deadline is not None and deadline <= 0:
            raise ValueError(f"expected a deadline above 0 seconds, received {deadline}")
        if not 1024 <= message_limit < 2**31 - 2**21:  # protocol buffers end at 2 GiB
            raise ValueError(f"expected a message_limit from 1024 to {2**31 - 2**21 - 1}, received {message_limit}")
        if concurrency < 1:
            raise ValueError(f"expected a concurrency of at least 1, received {concurrency}")
        self._limit, self._concurrency, self._progress = message_limit, concurrency, progress
        transport = _transport(address, message_limit)
        self._limits = calls.Limits(message_limit, transport.encoded_size)
        self._connection = Connection(transport, ModelRef(model, version, label), deadline)

    @property
    def address(self) -> str:
        """The server's, as it was given."""
        return self._connection.transport.address

    def __enter__(self) -> Client:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.transport.close()

    def kernel(
        self,
        x1: Any,
        x2: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        tile: bool | None = None,
    ) -> np.ndarray:
        """The kernel of every example of x1 with every one of x2, or with every one of x1 if there is no x2.

        Args:
          x1: (n1, ...) array; see the class for models with several inputs.
          x2: (n2, ...) likewise.
          params: an array for the path of each trainable variable, at which to take the kernel instead of at the
            model's own (signature `ntk_with_params`); they are sent with each request.
          tile: whether the call may be split. By default it is if it does not fit a message, unless the examples of
            a batch influence each other (ntk.vmap_axes: null), or that cannot be found out.

        Returns:
          (n1, n2, ...) with the kept output axes.

        Raises:
          ServingError: there is no result; says why and what to do.
        """
        if params is not None:
            return _one(self._result(lambda served: self._pairs(served, x1, x1 if x2 is None else x2, params), tile))
        if x2 is None:
            return _one(self._result(lambda served: self._symmetric(served, x1), tile))
        return _one(self._result(lambda served: self._pairs(served, x1, x2), tile))

    def diagonal(self, x: Any, *, tile: bool | None = None) -> np.ndarray:
        """The (n, ...) kernel of each example with itself; arguments and errors as of `kernel`."""
        return _one(self._rows("ntk_diagonal", x, tile))

    def features(self, x: Any, *, tile: bool | None = None) -> np.ndarray:
        """The (n, ..., D) random projection of each example's Jacobian, whose products approximate the kernel.

        Arguments and errors as of `kernel`.
        """
        return _one(self._rows("ntk_features", x, tile))

    def forward(self, x: Any, *, tile: bool | None = None) -> np.ndarray:
        """The model's own (n, ...) output; arguments and errors as of `kernel`."""
        return _one(self._rows("forward", x, tile))

    def predict(
        self, x: Any, inputs: Mapping[str, Any] | None = None, *, tile: bool | None = None
    ) -> dict[str, np.ndarray]:
        """What answers (a SavedModel of `ntk-fit`) predict: `mean` (n, O), `variance` and `novelty` (n,), by name.

        predict(signature, inputs) calls any signature with its own inputs, all in one request, and returns its outputs
        by name. Else arguments and errors as of `kernel`.
        """
        if inputs is not None:
            return dict(self.ask(x, inputs).outputs)
        return self._rows("predict", x, tile)

    def nearest(self, x: Any, *, tile: bool | None = None) -> dict[str, np.ndarray]:
        """The most similar reference examples of answers: `id` and `similarity` (n, neighbors), by name.

        Arguments and errors as of `kernel`.
        """
        return self._rows("nearest", x, tile)

    def support(self, x: Any, *, tile: bool | None = None) -> dict[str, np.ndarray]:
        """The reference examples that a prediction rests on most: `id` and `weight` (n, neighbors), by name.

        Arguments and errors as of `kernel`.
        """
        return self._rows("support", x, tile)

    def ask(self, signature: str, inputs: Mapping[str, Any]) -> Prediction:
        """The same with what the answer tells of the server."""

        def answer(served: ServedModel) -> Prediction:
            spec = self._connection.signature(served, signature)
            prediction = self._connection.send(self._connection.ref, signature, named_inputs(inputs, spec))
            named = {name or next(iter(spec.outputs)): value for name, value in prediction.outputs.items()}
            outputs = {name: tensors.as_dtype(value, spec.outputs[name].dtype) for name, value in named.items()}
            return dataclasses.replace(prediction, outputs=outputs)

        return self._of_one_version(answer)

    def metadata(self) -> ServedModel:
        """The version that answers, its signatures, and its manifest if it tells it.

        Raises:
          ServingError: the server does not answer, or has no such model.
        """
        return self._connection.with_manifest(self._connection.served(refresh=True))

    def status(self) -> list[VersionStatus]:
        """The states of the model's versions.

        Raises:
          ServingError: the server does not answer, or has no such model.
        """
        return self._connection.status()

    def wait_until_ready(self, timeout: float = 300.0, *, manifest: bool = True) -> ServedModel:
        """Waits until the model is available, and returns its metadata.

        Args:
          timeout: seconds to wait at most; loading includes compiling what the warmup requests call.
          manifest: whether to ask the model for its manifest too.

        Raises:
          ServingError: it is not by then, or no version could be loaded.
        """
        return self._connection.wait_until_ready(timeout, manifest)

    # -------------------------------------------------------------------------------------- calls as requests

    def _pairs(self, served: ServedModel, x1: Any, x2: Any, params: Mapping[str, Any] | None = None) -> Call:
        spec = self._connection.signature(served, "ntk" if params is None else "ntk_with_params")
        first, second = (self._inputs(served, spec, side, x) for side, x in (("x1", x1), ("x2", x2)))
        if params is None:
            return calls.pairs(spec, first, second, self._limits)
        values = param_inputs(params, spec, self._connection.with_manifest(served).param_names)
        return calls.pairs(spec, first, second, self._limits, values)

    def _symmetric(self, served: ServedModel, x: Any) -> Call:
        if "ntk_symmetric" not in served.signatures:
            return self._pairs(served, x, x)
        spec = served.signatures["ntk_symmetric"]
        inputs = self._inputs(served, spec, "x", x)
        whole = calls.symmetric(spec, inputs, self._limits)
        if whole is not None:
            return whole
        self._connection.signature(served, "ntk")  # what is off the diagonal
        swap = self._connection.with_manifest(served).swap
        return calls.symmetric_split(spec, inputs, swap, self._limits)

    def _rowwise(self, served: ServedModel, name: str, x: Any, most: int | None) -> Call:
        spec = self._connection.signature(served, name)
        return calls.rowwise(name, spec, self._inputs(served, spec, "x", x), self._limits, most)

    def _inputs(self, served: ServedModel, spec: SignatureSpec, side: str, x: Any) -> dict[str, np.ndarray]:
        several = len(spec.side(side)) > 1
        return side_inputs(side, x, spec, self._connection.with_manifest(served).input_names if several else None)

    # -------------------------------------------------------------------------------------- requests as a result

    def _rows(self, name: str, x: Any, tile: bool | None) -> dict[str, np.ndarray]:
        """The results, by name, of a signature that has a row for each example."""
        try:
            return self._result(lambda served: self._rowwise(served, name, x, None), tile)
        except ServingError as error:
            most = largest_batch(error)
            if most is None:
                raise
        # A server that joins the examples of several requests may as well get those of one in several.
        return self._result(lambda served: self._rowwise(served, name, x, most), True)

    def _result(self, plan: Callable[[ServedModel], Call], tile: bool | None) -> dict[str, np.ndarray]:
        """The results of a call, by name."""
        return self._of_one_version(lambda served: self._filled(plan(served), served, tile))

    def _of_one_version(self, result: Callable[[ServedModel], T]) -> T:
        """The result for the version that answers; it starts again if that is replaced in the meantime."""
        served = self._connection.served()
        for _ in range(_SWAPS):
            try:
                return result(served)
            except ServingError as error:
                if error.code not in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "INTERNAL"):
                    raise
                latest = self._connection.served(refresh=True)
                if latest.version == served.version:
                    raise
                served = latest
        return result(served)

    def _filled(self, call: Call, served: ServedModel, tile: bool | None) -> dict[str, np.ndarray]:
        result = {name: np.empty(shape, dtype) for name, (shape, dtype) in call.results.items()}
        stop = threading.Event()
        if len(call.requests) <= 1:
            for request in call.requests:
                self._fill(result, call, request, self._connection.ref, stop)
            return result
        self._check_may_split(served, tile)
        if self._connection.served(refresh=True).version != served.version:  # `served` may be long known
            raise ServingError(f"Version {served.version} was replaced meanwhile.", "NOT_FOUND")
        progress = Progress(call.title, len(call.requests), self._progress)
        fill = functools.partial(self._fill, result, call, ref=served.pinned, stop=stop)
        try:
            for _ in run_all([functools.partial(fill, r) for r in call.requests], self._concurrency, stop):
                progress.advance()
        finally:
            progress.close()
        return result

    def _fill(
        self, results: dict[str, np.ndarray], call: Call, request: Request, ref: ModelRef, stop: threading.Event
    ) -> None:
        """Puts the answers of one request into their places."""
        outputs = self._connection.send(ref, request.signature, request.inputs, stop).outputs
        for name, result in results.items():
            value = (
                outputs[name] if name in outputs else next(iter(outputs.values()))
            )  # REST does not name a single one
            answer = tensors.as_dtype(value, "DT_STRING") if result.dtype.hasobject else np.asarray(value, result.dtype)
            expected = result[request.place].shape
            if answer.shape != expected:
                joined = answer.shape[:1] == expected[:1] and answer.ndim == len(expected)
                raise ServingError(
                    f"{self._connection.transport.address} answered {request.signature!r} with shape {answer.shape}, "
                    f"where {expected} was expected. "
                    f"{BATCHING_CURE if joined else 'Is it an export of this product?'}.",
                    "INTERNAL",
                )
            result[request.place] = answer
            if request.mirrored is not None and call.swap is not None:
                result[request.mirrored] = np.transpose(answer, call.swap)

    def _check_may_split(self, served: ServedModel, tile: bool | None) -> None:
        """Raises if a call that takes several requests must not be made of them."""
        if tile is None:
            coupled = self._connection.with_manifest(served).coupled
            if coupled is False:
                return
            reason = "the examples of a batch influence each other (ntk.vmap_axes: null)"
            if coupled is None:
                reason = f"the server does not tell whether its examples influence each other (no {MANIFEST_SIGNATURE})"
        elif tile:
            return
        else:
            reason = "tile=False"
        cure = ", or pass tile=True if they do not" if reason.startswith("the server") else ""
        raise ServingError(
            f"The call must not be split: it does not fit one message of {self._limit:,} bytes, and {reason}. Raise "
            f"Client(message_limit=...){cure}.",
            "INVALID_ARGUMENT",
        )


def _transport(address: str, message_limit: int) -> Transport:
    if address.startswith(("http://", "https://")):
        return RestTransport(address)
    if "://" in address and not address.startswith(("grpc://", "grpcs://")):
        raise ValueError(f"expected host:port, grpcs://host:port, http:// or https://, received {address!r}")
    return GrpcTransport(address, message_limit)


def _one(results: Mapping[str, np.ndarray]) -> np.ndarray:
    """The only result."""
    (result,) = results.values()
    return result
