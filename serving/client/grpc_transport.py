"""TF Serving's gRPC API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np

from serving.client import messages, tensors
from serving.client.errors import closed, explain
from serving.client.model import ModelRef, Prediction, ServedModel, SignatureSpec, TensorSpec, VersionStatus

_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}


class GrpcTransport:
    """A channel to host:port; `Transport` documents the methods."""

    tells_version = True

    def __init__(self, address: str, message_limit: int) -> None:
        """Opens no connection yet.

        Args:
          address: host:port; with "grpcs://" before it the connection is encrypted.
          message_limit: bytes of the largest message to send or to accept.
        """
        self.address = address
        options = [
            # Room for names and shapes beside the tensors, whose sizes are what `message_limit` is about.
            ("grpc.max_receive_message_length", message_limit + 2**20),
            ("grpc.max_send_message_length", message_limit + 2**20),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),  # by default two minutes: a restarted server would not be seen
        ]
        target = address.removeprefix("grpcs://").removeprefix("grpc://")
        if address.startswith("grpcs://"):
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        service = "/tensorflow.serving.PredictionService"
        self._predict = self._method(f"{service}/Predict", messages.PredictResponse)
        self._metadata = self._method(f"{service}/GetModelMetadata", messages.GetModelMetadataResponse)
        self._status = self._method("/tensorflow.serving.ModelService/GetModelStatus", messages.GetModelStatusResponse)

    def _method(self, path: str, response: Any) -> Any:
        return self._channel.unary_unary(
            path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString
        )

    def predict(
        self, model: ModelRef, signature: str, inputs: Mapping[str, np.ndarray], timeout: float | None
    ) -> Prediction:
        """Calls a signature."""
        request = messages.PredictRequest(model_spec=_spec(model))
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            tensors.write(array, request.inputs[name])
        response = self._call(self._predict, request, timeout, f"{model} signature {signature!r}")
        try:
            outputs = {name: tensors.read(proto) for name, proto in response.outputs.items()}
        except ValueError as error:
            raise explain("INTERNAL", str(error), address=self.address, about=str(model)) from error
        as_content = any(proto.tensor_content for proto in response.outputs.values())
        return Prediction(outputs, response.model_spec.version.value or None, as_content)

    def metadata(self, model: ModelRef, timeout: float | None) -> ServedModel:
        """The version that answers for `model`, and its signatures."""
        request = messages.GetModelMetadataRequest(model_spec=_spec(model), metadata_field=["signature_def"])
        response = self._call(self._metadata, request, timeout, str(model))
        signatures = messages.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def
        return ServedModel(
            model.name,
            response.model_spec.version.value,
            {
                name: SignatureSpec(*({k: _tensor_spec(t) for k, t in side.items()} for side in (s.inputs, s.outputs)))
                for name, s in sorted(signatures.items())
                if not name.startswith("__")
            },
        )

    def status(self, model: ModelRef, timeout: float | None) -> list[VersionStatus]:
        """The states of the model's versions."""
        response = self._call(
            self._status, messages.GetModelStatusRequest(model_spec=_spec(model)), timeout, str(model)
        )
        return [
            VersionStatus(v.version, _STATES.get(v.state, str(v.state)), v.status.error_message)
            for v in response.model_version_status
        ]

    def encoded_size(self, dtype: np.dtype, length: int = 0) -> int:
        """Of one number: floats as they are; integers, and lengths of texts, as variable-length ones of up to 10."""
        return dtype.itemsize if dtype in (np.float32, np.float64) else 10 + length

    def close(self) -> None:
        """Closes the channel; calls under way end with an error."""
        self._channel.close()

    def _call(self, method: Any, request: Any, timeout: float | None, about: str) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise explain(error.code().name, error.details() or "", address=self.address, about=about) from None
        except ValueError as error:  # the channel was closed
            raise closed(self.address) from error


def _spec(model: ModelRef) -> Any:
    spec = messages.ModelSpec(name=model.name)
    if model.version is not None:
        spec.version.value = model.version
    elif model.label:
        spec.version_label = model.label
    return spec


def _tensor_spec(info: Any) -> TensorSpec:
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(None if d.size < 0 else d.size for d in info.tensor_shape.dim)
    return TensorSpec(shape, tensors.dtype_name(info.dtype))
