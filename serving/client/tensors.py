"""NumPy arrays to and from TensorProto, without TensorFlow."""

from __future__ import annotations

import base64
import math
import sys
from typing import Any

import ml_dtypes
import numpy as np

from serving.shared.model_server import TENSOR_CONTENT

# TensorFlow's DataType: its number, the NumPy dtype, and the field of a TensorProto that lists values of it.
_DTYPES: dict[str, tuple[int, Any, str]] = {
    "DT_FLOAT": (1, np.float32, "float_val"),
    "DT_DOUBLE": (2, np.float64, "double_val"),
    "DT_INT32": (3, np.int32, "int_val"),
    "DT_UINT8": (4, np.uint8, "int_val"),
    "DT_INT16": (5, np.int16, "int_val"),
    "DT_INT8": (6, np.int8, "int_val"),
    "DT_STRING": (7, np.object_, "string_val"),
    "DT_INT64": (9, np.int64, "int64_val"),
    "DT_BOOL": (10, np.bool_, "bool_val"),
    "DT_BFLOAT16": (14, ml_dtypes.bfloat16, "half_val"),
    "DT_UINT16": (17, np.uint16, "int_val"),
    "DT_HALF": (19, np.float16, "half_val"),
    "DT_UINT32": (22, np.uint32, "uint32_val"),
    "DT_UINT64": (23, np.uint64, "uint64_val"),
}
_NAMES = {number: name for name, (number, _, _) in _DTYPES.items()}
_NUMBERS = {np.dtype(dtype): number for number, dtype, _ in _DTYPES.values()}
_STRING = _DTYPES["DT_STRING"][0]


def dtype_name(number: int) -> str:
    """The name of a DataType: DT_FLOAT for 1."""
    return _NAMES.get(number, f"DT_{number}")


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype for DT_FLOAT and the like.

    Raises:
      ValueError: there is none.
    """
    if name not in _DTYPES:
        raise ValueError(f"expected a tensor of numbers or texts, received {name}")
    return np.dtype(_DTYPES[name][1])


def write(array: np.ndarray, proto: Any) -> None:
    """Writes an array, of numbers or of texts, into an empty TensorProto."""
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if array.dtype.kind in "OUS":
        proto.dtype = _STRING
        proto.string_val.extend(_as_bytes(value) for value in array.ravel().tolist())
    else:
        proto.dtype = _NUMBERS[array.dtype]
        proto.tensor_content = _other_order(array).tobytes()


def read(proto: Any) -> np.ndarray:
    """The array that a TensorProto holds, read-only where it can share the message's memory.

    Texts are objects of type bytes.

    Raises:
      ValueError: the values do not fill the shape, or are of a dtype that NumPy lacks, or texts not as texts.
    """
    name = dtype_name(proto.dtype)
    dtype = numpy_dtype(name)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_content and dtype == np.object_:
        raise ValueError(f"expected texts in string_val, received what --{TENSOR_CONTENT} makes of them")
    if proto.tensor_content:
        flat = _other_order(np.frombuffer(proto.tensor_content, dtype))
    else:
        flat = _listed(getattr(proto, _DTYPES[name][2]), dtype, math.prod(shape))
    if flat.size != math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} values for shape {shape}, received {flat.size}")
    return flat.reshape(shape)


def as_dtype(values: Any, name: str) -> np.ndarray:
    """What either protocol answers, as an array of that dtype; REST has str or base64, and Python's numbers."""
    array = np.asarray(values)
    if name != "DT_STRING":
        return array.astype(numpy_dtype(name), copy=False)
    texts = np.empty(array.size, object)
    texts[:] = [_as_bytes(value) for value in array.ravel().tolist()]
    return texts.reshape(array.shape)


def as_json(array: np.ndarray) -> Any:
    """Nested lists of what JSON has; bytes in base64, as TF Serving takes them."""
    if array.dtype.kind not in "OS":
        return array.tolist()
    values = np.empty(array.size, object)
    values[:] = [v if isinstance(v, str) else {"b64": base64.b64encode(v).decode()} for v in array.ravel().tolist()]
    return values.reshape(array.shape).tolist()


def text_size(value: str | bytes) -> int:
    """Its bytes."""
    return len(_as_bytes(value))


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return value.encode() if isinstance(value, str) else bytes(value)


def _other_order(array: np.ndarray) -> np.ndarray:
    """Little-endian, as messages are, from this machine's order, or the reverse."""
    return array if sys.byteorder == "little" else array.byteswap()


def _listed(values: Any, dtype: np.dtype, size: int) -> np.ndarray:
    """Values from a list, of which TensorFlow may have left out the last ones if they equal the last that is there."""
    if dtype == np.object_:
        flat = np.empty(len(values), object)
        flat[:] = list(values)
    elif dtype in (np.float16, ml_dtypes.bfloat16):  # listed by their bits
        flat = np.array(values, np.uint16).view(dtype)
    else:
        flat = np.array(values, dtype)
    if 0 < flat.size < size:
        flat = np.concatenate([flat, np.repeat(flat[-1:], size - flat.size)])
    return flat
