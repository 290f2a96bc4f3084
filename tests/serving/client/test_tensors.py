"""Arrays as TensorFlow reads and writes them in messages."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.client import messages, tensors

DTYPES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    ml_dtypes.bfloat16,
]


def ours(official):
    return messages.TensorProto.FromString(official.SerializeToString())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 1, 3)])
def test_tensorflow_reads_what_is_written(dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    proto = messages.TensorProto()
    tensors.write(array, proto)
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(proto.SerializeToString()))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0, 2), (2, 3)])
def test_what_tensorflow_writes_is_read(dtype, shape):
    array = (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)
    for proto in (tf.make_tensor_proto(array), listed(array)):
        read = tensors.read(ours(proto))
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def listed(array):
    """As TF Serving answers: values in the dtype's own field."""
    proto = tf.make_tensor_proto(array)
    names = {"float32": "float_val", "float64": "double_val", "float16": "half_val", "bfloat16": "half_val"}
    names |= {"bool": "bool_val", "int64": "int64_val", "uint32": "uint32_val", "uint64": "uint64_val"}
    values = array.view(np.uint16) if names.get(array.dtype.name) == "half_val" else array
    field = getattr(proto, names.get(array.dtype.name, "int_val"))
    proto.ClearField("tensor_content")
    del field[:]
    field.extend(values.ravel().tolist())
    return proto


def test_values_that_are_left_out_equal_the_last():
    proto = messages.TensorProto(dtype=1, float_val=[1.0, 2.0])
    proto.tensor_shape.dim.add().size = 4
    np.testing.assert_array_equal(tensors.read(proto), np.float32([1, 2, 2, 2]))


def test_texts():
    proto = messages.TensorProto()
    tensors.write(np.array("ä"), proto)
    assert tf.make_ndarray(tensor_pb2.TensorProto.FromString(proto.SerializeToString())).item() == "ä".encode()
    assert tensors.read(ours(tf.make_tensor_proto("ä"))).item() == "ä".encode()


def test_texts_of_a_server_with_a_harmful_flag():
    proto = messages.TensorProto(dtype=7, tensor_content=b"\x02ab")
    with pytest.raises(ValueError, match="what --enable_serialization_as_tensor_content makes of them"):
        tensors.read(proto)


def test_texts_and_numbers_of_either_protocol():
    texts = np.array([["ä".encode(), b"\xff"]], object)
    assert tensors.as_json(texts) == [[{"b64": "w6Q="}, {"b64": "/w=="}]]
    assert tensors.as_json(np.array(["ä"], object)) == ["ä"]
    for answer in (texts, [["ä", {"b64": "/w=="}]]):
        read = tensors.as_dtype(answer, "DT_STRING")
        assert read.tolist() == texts.tolist()
    assert tensors.as_dtype([[1, 0.1]], "DT_FLOAT").dtype == np.float32
    assert tensors.as_dtype([], "DT_INT64").dtype == np.int64


def test_values_that_do_not_fill_the_shape():
    proto = messages.TensorProto(dtype=1, tensor_content=b"\0\0\0\0")
    proto.tensor_shape.dim.add().size = 2
    with pytest.raises(ValueError, match=r"expected 2 values for shape \(2,\), received 1"):
        tensors.read(proto)
    with pytest.raises(ValueError, match="received DT_8"):
        tensors.read(messages.TensorProto(dtype=8))


def test_dtypes_without_numpy_counterpart():
    assert tensors.numpy_dtype("DT_FLOAT") == np.float32
    with pytest.raises(ValueError, match="expected a tensor of numbers or texts, received DT_COMPLEX64"):
        tensors.numpy_dtype("DT_COMPLEX64")
