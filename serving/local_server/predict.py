"""Predict and metadata, by TF Serving's rules: from request message to response message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from serving.local_server import json_document, json_tensors, tensors
from serving.local_server.errors import invalid_argument, resource_exhausted
from serving.local_server.json_document import JsonObject
from serving.local_server.servable import DEFAULT_SIGNATURE, Servable
from serving.shared.tensorflow_names import meta_graph_pb2

_SIGNATURE_DEF = "signature_def"

Run = Callable[..., dict[str, np.ndarray]]  # as Servable.run: signature, inputs, wanted outputs


def predict(
    servable: Servable, run: Run, request: predict_pb2.PredictRequest, *, max_bytes: int
) -> predict_pb2.PredictResponse:
    """Answers a request by what `run` computes; `max_bytes` bounds each input.

    Raises:
      ServingError: what is wrong with the request, or what TensorFlow says to it.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signature(name)
    arrays = _inputs(signature, request, max_bytes)
    outputs = _checked_filter(signature, request.output_filter)
    response = predict_pb2.PredictResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.signature_name = name
    response.model_spec.version.value = servable.version
    for alias, array in run(name, arrays, outputs).items():
        tensors.fill_proto(array, response.outputs[alias])
    return response


def predict_json(servable: Servable, run: Run, document: JsonObject, *, max_bytes: int) -> bytes:
    """Answers a REST request in its own format, by what `run` computes, if that takes `max_bytes` at most.

    Raises:
      ServingError: what is wrong with the request, or what TensorFlow says to it.
    """
    given = document.get("signature_name", "")
    if not isinstance(given, str):
        raise json_document.format_error(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    name = given or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    arrays, layout = json_tensors.read_inputs(document, given, servable.signatures[name].inputs)
    servable.signature(name)
    answer = json_tensors.write_outputs(run(name, arrays), layout)
    if len(answer) > max_bytes:
        raise resource_exhausted(f"Sent message larger than max ({len(answer)} vs. {max_bytes})")  # gRPC's words
    return answer


def metadata(
    servable: Servable, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The signatures of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = servable.version
    response.metadata[_SIGNATURE_DEF].Pack(signature_map(servable))
    return response


def signature_map(servable: Servable) -> get_model_metadata_pb2.SignatureDefMap:
    """The signatures of a version, as the message that clients get."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in servable.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    return signatures


def check_metadata_request(request: get_model_metadata_pb2.GetModelMetadataRequest) -> None:
    """Raises ServingError if it asks for no field or an unknown one."""
    check_model_spec(request)
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != _SIGNATURE_DEF:
            raise invalid_argument(f"Metadata field {field} is not supported")


def check_model_spec(request: object) -> model_pb2.ModelSpec:
    """The request's model_spec; raises ServingError if there is none."""
    if not request.HasField("model_spec"):  # type: ignore[attr-defined]
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec  # type: ignore[attr-defined]


def _inputs(
    signature: meta_graph_pb2.SignatureDef, request: predict_pb2.PredictRequest, max_bytes: int
) -> dict[str, np.ndarray]:
    given, wanted = set(request.inputs), set(signature.inputs)
    if len(given) > len(wanted) or (len(given) < len(wanted) and not signature.defaults):
        raise invalid_argument(
            f"input size does not match signature: {len(given)}!={len(wanted)} len({_set(given)}) != "
            f"len({_set(wanted)}). Sent extra: {_set(given - wanted)}. Missing but required: {_set(wanted - given)}."
        )
    arrays = {}
    for alias in sorted(wanted):
        if alias in given:
            proto = request.inputs[alias]
        elif alias in signature.defaults:
            proto = signature.defaults[alias]
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and "
                f"no default value provided. Inputs expected to be in the request {_set(given)}, or default input "
                f"alias set: {','.join(sorted(signature.defaults))}"
            )
        arrays[alias] = tensors.to_array(proto, alias, max_bytes)
    return arrays


def _checked_filter(signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]) -> list[str]:
    seen: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return seen


def _set(names: Iterable[str]) -> str:
    return f"{{{','.join(sorted(names))}}}"
