"""TensorProto to array and back, at the speed of memory wherever the wire format allows it."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from serving.local_server.errors import ServingError, invalid_argument
from serving.shared.tensorflow_names import tensor_pb2, types_pb2

MAX_RANK = 64  # of NumPy's arrays; TensorFlow's end at 254

# The field of TensorProto that holds the values of a dtype.
_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
}
_AS_BITS = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)  # half_val has the bits as integers

# Fields whose packed values are on the wire as they are in memory (little-endian).
_RAW = {types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_BOOL}


def to_array(proto: tensor_pb2.TensorProto, alias: str, max_bytes: int) -> np.ndarray:
    """The array that a TensorProto stands for: fewer values than the shape has places repeat the last one.

    Args:
      proto: the message; its values are in `tensor_content` or in the dtype's own field.
      alias: the input's name, for the error.
      max_bytes: largest array that a message, which may be a few bytes itself, can ask for.

    Raises:
      ServingError: if the message is not a tensor.
    """
    malformed = invalid_argument(f"tensor parsing error: {alias}")
    field = _FIELDS.get(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if field is None or proto.tensor_shape.unknown_rank or len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise malformed
    dtype = np.dtype(tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype)
    size = math.prod(shape)
    if size * dtype.itemsize > max_bytes:
        raise ServingError(
            malformed.code, f"{malformed}: shape {list(shape)} asks for more than the limit of {max_bytes} bytes"
        )
    if proto.tensor_content:
        content = proto.tensor_content
        if proto.dtype == types_pb2.DT_STRING or len(content) != size * dtype.itemsize:
            raise malformed
        return _reshaped(np.frombuffer(content, dtype), shape, malformed)
    bits = np.dtype(np.uint16) if proto.dtype in _AS_BITS else dtype
    given = getattr(proto, field)
    try:
        values = np.array(given[:size], bits)
    except OverflowError:
        raise malformed from None
    if len(values) < size:
        values = np.pad(values, (0, size - len(values)), "edge") if len(values) else np.zeros(size, bits)
        if proto.dtype == types_pb2.DT_STRING:
            values[values == 0] = b""
    return _reshaped(values.view(dtype), shape, malformed)


def _reshaped(values: np.ndarray, shape: tuple[int, ...], malformed: ServingError) -> np.ndarray:
    """NumPy refuses a shape whose product overflows, even if one of its sizes is zero."""
    try:
        return values.reshape(shape)
    except ValueError:
        raise malformed from None


def fill_proto(array: np.ndarray, proto: tensor_pb2.TensorProto) -> None:
    """Writes an array into an empty TensorProto, its values into the dtype's own field as TF Serving does.

    Args:
      array: the values; strings as objects.
      proto: the message, empty.
    """
    proto.dtype = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if proto.dtype == types_pb2.DT_STRING:
        proto.string_val.extend(array.ravel().tolist())
    elif proto.dtype in _RAW:
        # A packed field is a tag, a length and the values as they are in memory: no loop over them in Python.
        values = array.tobytes()
        number = tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[_FIELDS[proto.dtype]].number
        if values:
            proto.MergeFromString(b"".join((_varint(number << 3 | 2), _varint(len(values)), values)))
    elif proto.dtype in _AS_BITS:
        proto.half_val.extend(array.view(np.uint16).ravel().tolist())
    else:
        getattr(proto, _FIELDS[proto.dtype]).extend(array.ravel().tolist())


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
