"""The messages of TF Serving's API that a client needs, without TensorFlow.

The official classes (tensorflow-serving-api) import all of TensorFlow, which takes longer, and more memory, than all
that a client does. These are the same on the wire; a test compares every field with the official ones.
"""

from __future__ import annotations

from serving.shared.protos import Table, message_classes

FIELDS: Table = {
    "tensorflow.TensorShapeProto.Dim": {"size": (1, "int64"), "name": (2, "string")},
    "tensorflow.TensorShapeProto": {"dim": (2, "[]tensorflow.TensorShapeProto.Dim"), "unknown_rank": (3, "bool")},
    "tensorflow.TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "tensorflow.TensorShapeProto"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "[]float"),
        "double_val": (6, "[]double"),
        "int_val": (7, "[]int32"),
        "string_val": (8, "[]bytes"),
        "int64_val": (10, "[]int64"),
        "bool_val": (11, "[]bool"),
        "half_val": (13, "[]int32"),
        "uint32_val": (16, "[]uint32"),
        "uint64_val": (17, "[]uint64"),
    },
    "tensorflow.TensorInfo": {
        "name": (1, "string"),
        "dtype": (2, "int32"),
        "tensor_shape": (3, "tensorflow.TensorShapeProto"),
    },
    "tensorflow.SignatureDef": {
        "inputs": (1, "{}tensorflow.TensorInfo"),
        "outputs": (2, "{}tensorflow.TensorInfo"),
        "method_name": (3, "string"),
    },
    "tensorflow.serving.SignatureDefMap": {"signature_def": (1, "{}tensorflow.SignatureDef")},
    "google.protobuf.Int64Value": {"value": (1, "int64")},
    "google.protobuf.Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "tensorflow.serving.ModelSpec": {
        "name": (1, "string"),
        "version": (2, "google.protobuf.Int64Value"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "tensorflow.serving.PredictRequest": {
        "model_spec": (1, "tensorflow.serving.ModelSpec"),
        "inputs": (2, "{}tensorflow.TensorProto"),
        "output_filter": (3, "[]string"),
    },
    "tensorflow.serving.PredictResponse": {
        "outputs": (1, "{}tensorflow.TensorProto"),
        "model_spec": (2, "tensorflow.serving.ModelSpec"),
    },
    "tensorflow.serving.GetModelMetadataRequest": {
        "model_spec": (1, "tensorflow.serving.ModelSpec"),
        "metadata_field": (2, "[]string"),
    },
    "tensorflow.serving.GetModelMetadataResponse": {
        "model_spec": (1, "tensorflow.serving.ModelSpec"),
        "metadata": (2, "{}google.protobuf.Any"),
    },
    "tensorflow.serving.GetModelStatusRequest": {"model_spec": (1, "tensorflow.serving.ModelSpec")},
    "tensorflow.serving.StatusProto": {"error_code": (1, "int32"), "error_message": (2, "string")},
    "tensorflow.serving.ModelVersionStatus": {
        "version": (1, "int64"),
        "state": (2, "int32"),
        "status": (3, "tensorflow.serving.StatusProto"),
    },
    "tensorflow.serving.GetModelStatusResponse": {
        "model_version_status": (1, "[]tensorflow.serving.ModelVersionStatus")
    },
}

_CLASSES = message_classes(FIELDS)

TensorProto = _CLASSES["tensorflow.TensorProto"]
TensorShapeProto = _CLASSES["tensorflow.TensorShapeProto"]
SignatureDefMap = _CLASSES["tensorflow.serving.SignatureDefMap"]
ModelSpec = _CLASSES["tensorflow.serving.ModelSpec"]
PredictRequest = _CLASSES["tensorflow.serving.PredictRequest"]
PredictResponse = _CLASSES["tensorflow.serving.PredictResponse"]
GetModelMetadataRequest = _CLASSES["tensorflow.serving.GetModelMetadataRequest"]
GetModelMetadataResponse = _CLASSES["tensorflow.serving.GetModelMetadataResponse"]
GetModelStatusRequest = _CLASSES["tensorflow.serving.GetModelStatusRequest"]
GetModelStatusResponse = _CLASSES["tensorflow.serving.GetModelStatusResponse"]
