"""Asks a running server (gRPC host:port, REST host:port) every case below and writes what it answers as JSON.

    python record.py 127.0.0.1:8500 127.0.0.1:8501 > recorded.json

recorded.json holds the answers of the real TF Serving 2.20.0 (tensorflow_model_server, both versions of make_model.py's
model loaded, labels stable=1 and canary=2, --xla_cpu_compilation_enabled=true).
"""

import http.client
import json
import sys

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

X = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 2.0]]
P = "/v1/models/m:predict"
REST = {
    "status": ("GET", "/v1/models/m", None),
    "status_version": ("GET", "/v1/models/m/versions/1", None),
    "status_label": ("GET", "/v1/models/m/labels/stable", None),
    "status_unknown_version": ("GET", "/v1/models/m/versions/99", None),
    "status_unknown_label": ("GET", "/v1/models/m/labels/nope", None),
    "status_unknown_model": ("GET", "/v1/models/nope", None),
    "metadata": ("GET", "/v1/models/m/metadata", None),
    "metadata_version": ("GET", "/v1/models/m/versions/1/metadata", None),
    "metadata_unknown_model": ("GET", "/v1/models/nope/metadata", None),
    "root": ("GET", "/", None),
    "v1": ("GET", "/v1", None),
    "models": ("GET", "/v1/models", None),
    "models_slash": ("GET", "/v1/models/", None),
    "v2_path": ("GET", "/v2/models/m", None),
    "unknown_verb": ("POST", "/v1/models/m:explain", {"instances": X}),
    "get_on_predict": ("GET", P, None),
    "post_on_status": ("POST", "/v1/models/m", {}),
    "put_on_predict": ("PUT", P, {"inputs": {}}),
    "delete_on_predict": ("DELETE", P, None),
    "path_traversal": ("GET", "/v1/models/../../etc/passwd", None),
    "columns": ("POST", P, {"inputs": {"x1": X, "x2": X[:1]}}),
    "columns_unequal_batches": ("POST", P, {"inputs": {"x1": X[:1], "x2": X}}),
    "columns_signature": ("POST", P, {"signature_name": "forward", "inputs": {"x": X}}),
    "columns_single_unnamed": ("POST", P, {"signature_name": "forward", "inputs": X}),
    "rows_named": ("POST", P, {"instances": [{"x1": X[0], "x2": X[0]}, {"x1": X[1], "x2": X[1]}]}),
    "rows_single_named": ("POST", P, {"signature_name": "forward", "instances": [{"x": X[0]}, {"x": X[1]}]}),
    "rows_single_unnamed": ("POST", P, {"signature_name": "forward", "instances": X}),
    "rows_scalar_output": ("POST", P, {"signature_name": "ntk_diagonal", "instances": X}),
    "version": ("POST", "/v1/models/m/versions/1:predict", {"signature_name": "forward", "instances": X}),
    "label": ("POST", "/v1/models/m/labels/canary:predict", {"signature_name": "forward", "instances": X}),
    "integers_for_floats": ("POST", P, {"signature_name": "forward", "instances": [[1, 2, 3, 4]]}),
    "unknown_model": ("POST", "/v1/models/nope:predict", {"instances": X}),
    "unknown_version": ("POST", "/v1/models/m/versions/99:predict", {"instances": X}),
    "unknown_label": ("POST", "/v1/models/m/labels/nope:predict", {"instances": X}),
    "bad_version": ("POST", "/v1/models/m/versions/abc:predict", {"instances": X}),
    "unknown_signature": ("POST", P, {"signature_name": "nope", "instances": X}),
    "missing_input": ("POST", P, {"inputs": {"x1": X}}),
    "extra_input": ("POST", P, {"inputs": {"x1": X, "x2": X, "x3": X}}),
    "wrong_input_name": ("POST", P, {"signature_name": "forward", "inputs": {"y": X}}),
    "rows_for_two_inputs_unnamed": ("POST", P, {"instances": X}),
    "string_for_float": ("POST", P, {"signature_name": "forward", "instances": [["a", "b", "c", "d"]]}),
    "bool_for_float": ("POST", P, {"signature_name": "forward", "instances": [[True, False, True, False]]}),
    "null_value": ("POST", P, {"signature_name": "forward", "instances": [[None, 1, 2, 3]]}),
    "ragged": ("POST", P, {"signature_name": "forward", "instances": [[1, 2, 3, 4], [1, 2]]}),
    "wrong_dimension": ("POST", P, {"signature_name": "forward", "instances": [[1.0, 2.0]]}),
    "wrong_rank_low": ("POST", P, {"signature_name": "forward", "inputs": {"x": X[0]}}),
    "wrong_rank_high": ("POST", P, {"signature_name": "forward", "inputs": {"x": [X]}}),
    "scalar_input": ("POST", P, {"signature_name": "forward", "inputs": {"x": 1.0}}),
    "empty_rows": ("POST", P, {"signature_name": "forward", "instances": []}),
    "empty_columns": ("POST", P, {"signature_name": "forward", "inputs": {"x": []}}),
    "empty_inputs": ("POST", P, {"inputs": {}}),
    "instances_not_a_list": ("POST", P, {"instances": {"x": 1}}),
    "both_formats": ("POST", P, {"instances": X, "inputs": {"x1": X, "x2": X}}),
    "neither_format": ("POST", P, {"signature_name": "forward"}),
    "unknown_key": ("POST", P, {"signature_name": "forward", "instances": X, "foo": 1}),
    "signature_not_a_string": ("POST", P, {"signature_name": 3, "instances": X}),
    "nan_literal": ("POST", P, '{"signature_name": "forward", "instances": [[NaN, 1, 2, 3]]}'),
    "infinity_literal": ("POST", P, '{"signature_name": "forward", "instances": [[Infinity, -Infinity, 2, 3]]}'),
    "overflowing_number": ("POST", P, '{"signature_name": "forward", "instances": [[1e39, 1, 2, 3]]}'),
    "huge_number": ("POST", P, '{"signature_name": "forward", "instances": [[1e400, 1, 2, 3]]}'),
    "malformed_json": ("POST", P, '{"instances": [[1, 2'),
    "json_array": ("POST", P, "[1, 2, 3]"),
    "empty_body": ("POST", P, ""),
    "not_utf8": ("POST", P, b"\xff\xfe{}"),
    "base64_for_float": ("POST", P, {"signature_name": "forward", "instances": [{"b64": "AAAA"}]}),
    "duplicate_key": ("POST", P, '{"signature_name": "forward", "instances": [[1,2,3,4]], "instances": [[0,0,0,0]]}'),
    "deep_nesting": ("POST", P, '{"signature_name": "forward", "instances": ' + "[" * 100 + "1" + "]" * 100 + "}"),
}


def encode(body):
    """A case's body as bytes; None for none."""
    if body is None or isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def ask_rest(address, method, path, body):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, path, body=encode(body), headers={"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode("utf-8", "replace")
    connection.close()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = text
    return {
        "method": method,
        "path": path,
        "body": body if isinstance(body, str | dict | None) else repr(body),
        "status": response.status,
        "content_type": response.getheader("Content-Type"),
        "answer": answer,
    }


def ask_grpc(channel, method, request):
    stubs = prediction_service_pb2_grpc.PredictionServiceStub, model_service_pb2_grpc.ModelServiceStub
    call = next(getattr(stub, method) for stub in (make(channel) for make in stubs) if hasattr(stub, method))
    case = {"method": method, "request": json_format.MessageToDict(request, preserving_proto_field_name=True)}
    try:
        answer = call(request, timeout=30)
    except grpc.RpcError as error:
        return case | {"code": error.code().name, "details": error.details()}
    return case | {"code": "OK", "answer": json_format.MessageToDict(answer, preserving_proto_field_name=True)}


def predict(name="m", signature="", version=None, label=None, outputs=(), **inputs):
    r = predict_pb2.PredictRequest()
    r.model_spec.name, r.model_spec.signature_name = name, signature
    if version is not None:
        r.model_spec.version.value = version
    if label is not None:
        r.model_spec.version_label = label
    for k, v in inputs.items():
        r.inputs[k].CopyFrom(tf.make_tensor_proto(v))
    r.output_filter.extend(outputs)
    return r


def status(name, version=None):
    r = get_model_status_pb2.GetModelStatusRequest()
    r.model_spec.name = name
    if version is not None:
        r.model_spec.version.value = version
    return r


def metadata(name, *fields):
    r = get_model_metadata_pb2.GetModelMetadataRequest()
    r.model_spec.name = name
    r.metadata_field.extend(fields)
    return r


A = np.array(X, "f")
GRPC = {
    "predict": ("Predict", predict(x1=A, x2=A[:1])),
    "predict_signature": ("Predict", predict(signature="forward", x=A)),
    "predict_version": ("Predict", predict(signature="forward", version=1, x=A)),
    "predict_label": ("Predict", predict(signature="forward", label="canary", x=A)),
    "predict_zero_rows": ("Predict", predict(x1=A[:0], x2=A)),
    "predict_nan": ("Predict", predict(signature="forward", x=np.array([[np.nan, 1, 2, 3]], "f"))),
    "output_filter": ("Predict", predict(signature="forward", outputs=["output"], x=A)),
    "output_filter_unknown": ("Predict", predict(signature="forward", outputs=["nope"], x=A)),
    "unknown_model": ("Predict", predict(name="nope", x1=A, x2=A)),
    "empty_model_name": ("Predict", predict(name="", x1=A, x2=A)),
    "unknown_version": ("Predict", predict(version=99, x1=A, x2=A)),
    "unknown_label": ("Predict", predict(label="nope", x1=A, x2=A)),
    "unknown_signature": ("Predict", predict(signature="nope", x1=A, x2=A)),
    "missing_input": ("Predict", predict(x1=A)),
    "extra_input": ("Predict", predict(x1=A, x2=A, x3=A)),
    "wrong_input_name": ("Predict", predict(signature="forward", y=A)),
    "no_inputs": ("Predict", predict()),
    "wrong_dtype_double": ("Predict", predict(signature="forward", x=A.astype("d"))),
    "wrong_dtype_int": ("Predict", predict(signature="forward", x=A.astype("int32"))),
    "wrong_dtype_string": ("Predict", predict(signature="forward", x=[["a", "b", "c", "d"]])),
    "wrong_dimension": ("Predict", predict(signature="forward", x=A[:, :2])),
    "wrong_rank_low": ("Predict", predict(signature="forward", x=A[0])),
    "wrong_rank_high": ("Predict", predict(signature="forward", x=A[None])),
    "status": ("GetModelStatus", status("m")),
    "status_version": ("GetModelStatus", status("m", 1)),
    "status_unknown_version": ("GetModelStatus", status("m", 99)),
    "status_unknown_model": ("GetModelStatus", status("nope")),
    "metadata": ("GetModelMetadata", metadata("m", "signature_def")),
    "metadata_no_field": ("GetModelMetadata", metadata("m")),
    "metadata_unknown_field": ("GetModelMetadata", metadata("m", "nope")),
    "metadata_unknown_model": ("GetModelMetadata", metadata("nope", "signature_def")),
}


def ask_all(grpc_address, rest_address):
    with grpc.insecure_channel(grpc_address) as channel:
        return {
            "rest": {name: ask_rest(rest_address, *case) for name, case in REST.items()},
            "grpc": {name: ask_grpc(channel, *case) for name, case in GRPC.items()},
        }


if __name__ == "__main__":
    json.dump(ask_all(*sys.argv[1:]), sys.stdout, indent=1, sort_keys=True)
