"""The client's messages are TF Serving's on the wire."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pool
from tensorflow_serving.apis import (  # whose import registers the official messages
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.bundle import contents as bundle
from serving.client import messages

OFFICIAL = (get_model_metadata_pb2, get_model_status_pb2, predict_pb2, model_server_config_pb2)
SCALARS = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(descriptor_pool.descriptor.FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def official_kind(field):
    """A field's type as the tables write it."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return "{}" + official_kind(value)
    name = field.message_type.full_name if field.message_type else SCALARS[field.type]
    return ("[]" if field.is_repeated else "") + ("int32" if name == "enum" else name)


@pytest.mark.parametrize("name", [*messages.FIELDS, *bundle.CONFIG_FIELDS])
def test_fields_are_the_official_ones(name):
    assert OFFICIAL
    fields = {**messages.FIELDS, **bundle.CONFIG_FIELDS}[name]
    official = descriptor_pool.Default().FindMessageTypeByName(name).fields_by_name
    assert {field: (official[field].number, official_kind(official[field])) for field in fields} == fields


def test_official_code_reads_a_request():
    request = messages.PredictRequest(output_filter=["ntk"])
    request.model_spec.name, request.model_spec.version.value = "m", 3
    request.inputs["x"].dtype = 1
    official = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert official.model_spec.name == "m"
    assert official.model_spec.version.value == 3
    assert list(official.output_filter) == ["ntk"]
    assert official.inputs["x"].dtype == tf.float32.as_datatype_enum


def test_the_client_imports_no_tensorflow():
    code = """
import sys
for name in ("tensorflow", "jax", "keras", "exporter"):
    sys.modules[name] = None
import serving
serving.Client("localhost:1"); serving.Client("http://localhost:1"); print(serving.ServingError.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ServingError\n"
    assert np.__name__ in sys.modules
