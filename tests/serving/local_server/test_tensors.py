import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.local_server import tensors
from serving.local_server.errors import ServingError

LIMIT = 1 << 20
DTYPES = [
    "float32",
    "float64",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
]


def arrays(dtype):
    values = np.array([[0, 1, 2], [3, 100, 1]])
    yield values.astype(dtype)
    yield values.astype(dtype).T
    yield values[:0].astype(dtype)
    yield values[0, 1].astype(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, tf.bfloat16.as_numpy_dtype])
def test_what_is_written_is_read_by_us_and_by_tensorflow(dtype):
    for array in arrays(dtype):
        proto = tensor_pb2.TensorProto()
        tensors.fill_proto(array, proto)
        assert not proto.tensor_content  # which a real server would write with a flag that breaks its REST
        assert len(getattr(proto, tensors._FIELDS[proto.dtype])) == array.size
        for read in (tensors.to_array(proto, "x", LIMIT), tf.make_ndarray(proto)):
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("dtype", [*DTYPES, tf.bfloat16.as_numpy_dtype])
def test_what_tensorflow_writes_is_read(dtype):
    for array in arrays(dtype):
        read = tensors.to_array(tf.make_tensor_proto(array), "x", LIMIT)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_strings():
    array = np.array([[b"a", b"\xff"], [b"", b"ccc"]], object)
    proto = tensor_pb2.TensorProto()
    tensors.fill_proto(array, proto)
    np.testing.assert_array_equal(tensors.to_array(proto, "x", LIMIT), array)
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)
    assert tensors.to_array(tf.make_tensor_proto("text"), "x", LIMIT)[()] == b"text"


@pytest.mark.parametrize("dtype", [tf.float32, tf.int32, tf.bool, tf.string, tf.bfloat16])
@pytest.mark.parametrize("given", [0, 1, 2, 5])
def test_missing_values_repeat_the_last_as_in_tensorflow(dtype, given):
    values = {tf.bool: [True, False, True, True, False], tf.string: [b"a", b"b", b"c", b"d", b"e"]}
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    proto.tensor_shape.dim.add(size=3)
    field = tensors._FIELDS[proto.dtype]
    getattr(proto, field).extend(values.get(dtype, [1, 2, 3, 4, 5])[:given])
    expected = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    np.testing.assert_array_equal(tensors.to_array(proto, "x", LIMIT), expected)


def malformed():
    yield "dtype", tensor_pb2.TensorProto(dtype=types_pb2.DT_VARIANT)
    yield "no dtype", tensor_pb2.TensorProto()
    wrong_length = tf.make_tensor_proto(np.zeros(3, "f"))
    wrong_length.tensor_content = b"12345"
    yield "length", wrong_length
    negative = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT)
    negative.tensor_shape.dim.add(size=-1)
    yield "negative", negative
    unknown = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT)
    unknown.tensor_shape.unknown_rank = True
    yield "unknown rank", unknown
    deep = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT)
    for _ in range(65):
        deep.tensor_shape.dim.add(size=1)
    yield "rank", deep
    empty = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT)
    for size in (0, 2**62, 2**62):
        empty.tensor_shape.dim.add(size=size)
    yield "empty, with sizes that overflow", empty
    text = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_content=b"abc")
    yield "string content", text


@pytest.mark.parametrize(("what", "proto"), list(malformed()))
def test_what_is_no_tensor_is_refused(what, proto):
    with pytest.raises(ServingError, match=r"^tensor parsing error: name$"):
        tensors.to_array(proto, "name", LIMIT)


def test_a_small_message_cannot_ask_for_a_large_tensor():
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.0])
    for _ in range(2):
        proto.tensor_shape.dim.add(size=2**40)
    with pytest.raises(ServingError, match=f"more than the limit of {LIMIT} bytes"):
        tensors.to_array(proto, "x", LIMIT)
