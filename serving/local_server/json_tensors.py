"""TF Serving's JSON rules for tensors: row and column formats, base64, and what they say of bad input.

Good input is converted level by level without a loop over values in Python. Only if something is wrong with it, it is
walked value by value to find what TF Serving would find first.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import grpc
import numpy as np
import orjson
import rapidjson
import tensorflow as tf

from serving.local_server import json_document, tensors
from serving.local_server.errors import ServingError, invalid_argument
from serving.local_server.json_document import JsonObject
from serving.shared.tensorflow_names import meta_graph_pb2, types_pb2

Format = Literal["row", "column"]

_SMALL_INTEGERS = (types_pb2.DT_INT32, types_pb2.DT_INT16, types_pb2.DT_INT8, types_pb2.DT_UINT8)

_POWERS = np.array([np.longdouble(f"1e{k}") for k in range(60)])  # of ten; any float32 and 9 digits


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


# What a value must be for a dtype.
_ACCEPTS: dict[int, Callable[[Any], bool]] = {
    types_pb2.DT_FLOAT: _is_number,
    types_pb2.DT_DOUBLE: _is_number,
    **dict.fromkeys(_SMALL_INTEGERS, _is_integer(-(2**31), 2**31 - 1)),
    types_pb2.DT_INT64: _is_integer(-(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: _is_integer(0, 2**32 - 1),
    types_pb2.DT_UINT64: _is_integer(0, 2**64 - 1),
    types_pb2.DT_BOOL: lambda value: isinstance(value, bool),
    types_pb2.DT_STRING: lambda value: isinstance(value, str),
}
# The types of all values that need no closer look.
_PLAIN: dict[int, set[type]] = {
    types_pb2.DT_FLOAT: {int, float},
    types_pb2.DT_DOUBLE: {int, float},
    types_pb2.DT_BOOL: {bool},
}


def read_inputs(
    document: JsonObject, signature_name: str, inputs: Mapping[str, meta_graph_pb2.TensorInfo]
) -> tuple[dict[str, np.ndarray], Format]:
    """The arrays that a predict request holds, and its format.

    Raises:
      ServingError: with TF Serving's words.
    """
    if not inputs:
        raise invalid_argument(f"Failed to get input map for signature: {signature_name or 'DEFAULT'}")
    if "instances" in document:
        if "inputs" in document:
            raise json_document.format_error(
                document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        instances = document["instances"]
        if not isinstance(instances, list):
            raise json_document.format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise json_document.format_error(document, "No values in 'instances' array")
        return _from_rows(instances, {name: info.dtype for name, info in inputs.items()}), "row"
    if "inputs" in document:
        return _from_columns(document["inputs"], {name: info.dtype for name, info in inputs.items()}), "column"
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def write_outputs(outputs: Mapping[str, np.ndarray], layout: Format) -> bytes:
    """The body of an answer.

    Raises:
      ServingError: if the outputs cannot be written in this format.
    """
    names = sorted(outputs)
    for name in names:
        if outputs[name].dtype.kind not in "fiubO" or outputs[name].dtype == np.float16:
            dtype = tf.dtypes.as_dtype(outputs[name].dtype).name
            raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype}")
    if layout == "column":
        tree = {name: _writable(name, outputs[name]) for name in names}
        return _body("outputs", tree if len(names) > 1 else tree[names[0]])
    _check_rows(names, outputs)
    columns = [_writable(name, outputs[name]) for name in names]
    if len(names) == 1:
        return _body("predictions", columns[0])
    return _body("predictions", [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])


# ---------------------------------------------------------------------------------------------------------------- rows


def _from_rows(instances: list[Any], dtypes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """One element of `instances` for each example; the examples' values become axis 0 of each input."""
    if not isinstance(instances[0], JsonObject) and len(dtypes) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_object(instances[0])
    try:
        if named:
            if not all(_is_object(item) and item.keys() == dtypes.keys() for item in instances):
                raise _NotPlain
            return {name: _plain(list(map(_getter(name), instances)), dtype) for name, dtype in dtypes.items()}
        if any(map(_is_object, instances)):
            raise _NotPlain
        name, dtype = next(iter(dtypes.items()))
        return {name: _plain(instances, dtype)}
    except _NotPlain:
        return _from_rows_one_by_one(instances, dtypes, named)


def _from_rows_one_by_one(instances: list[Any], dtypes: Mapping[str, int], named: bool) -> dict[str, np.ndarray]:
    """As TF Serving goes through them: strings in base64 are read here, and what is wrong is found here."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in dtypes}
    for number, item in enumerate(instances):
        failed = f"Failed to process element: {number}"
        if named != _is_object(item):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {expected} but got {got} at item {number} of input list")
        pairs = item.pairs if named else [(next(iter(dtypes)), item)]
        for name, value in pairs:
            try:
                if name not in dtypes:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                _add_row(rows[name], _tensor(value, dtypes[name]))
            except ServingError as error:
                key = f" key: {name}" if named else ""
                raise invalid_argument(
                    f"{failed}{key} of 'instances' list. Error: {error.code.name}: {error}"
                ) from None
        if named and item.keys() != dtypes.keys():
            raise invalid_argument(
                f"{failed} of 'instances' list. JSON object: {json_document.show(item)} must only have keys: "
                f"{','.join(sorted(dtypes))}"
            )
    return {name: np.stack(values) for name, values in rows.items() if values}


def _add_row(rows: list[np.ndarray], row: np.ndarray) -> None:
    if rows and rows[0].size != row.size:
        raise invalid_argument(f"Expecting tensor size: {rows[0].size} but got: {row.size}")
    if rows and rows[0].shape != row.shape:
        shapes = (f"[{','.join(map(str, array.shape))}]" for array in (rows[0], row))
        raise invalid_argument("Expecting shape {} but got: {}".format(*shapes))
    rows.append(row)


def _is_object(value: Any) -> bool:
    """Whether it is an object of named inputs, and not a string in base64."""
    return isinstance(value, JsonObject) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, JsonObject) and len(value.pairs) == 1 and "b64" in value and isinstance(value["b64"], str)


def _getter(name: str) -> Callable[[JsonObject], Any]:
    return lambda item: item[name]


# ------------------------------------------------------------------------------------------------------------- columns


def _from_columns(value: Any, dtypes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """`inputs` is an object with a value for each input, or the value of the only one. Other keys are ignored."""
    if not _is_object(value):
        if len(dtypes) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        name, dtype = next(iter(dtypes.items()))
        return {name: _tensor(value, dtype)}
    # TF Serving walks a hash map, so that it is open which of several missing inputs it names: here the last by name.
    for name in sorted(dtypes, reverse=True):
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(value[name], dtype) for name, dtype in dtypes.items()}


# -------------------------------------------------------------------------------------------------------------- values


class _NotPlain(Exception):
    """The value has to be walked: it has strings, or something is wrong with it."""


def _tensor(value: Any, dtype: int) -> np.ndarray:
    """The array that nested lists stand for; its shape is that of the first element at each level."""
    try:
        return _plain(value, dtype)
    except _NotPlain:
        return _walked(value, dtype)


def _plain(value: Any, dtype: int) -> np.ndarray:
    """Nested lists of numbers or truth values, level by level."""
    shape = _shape(value)
    values = [value]
    for size in shape:
        if any(type(item) is not list or len(item) != size for item in values):
            raise _NotPlain
        values = list(itertools.chain.from_iterable(values))
    types = set(map(type, values))
    if not types <= _PLAIN.get(dtype, {int}) or dtype not in _ACCEPTS or dtype == types_pb2.DT_STRING:
        raise _NotPlain
    if types == {int} and dtype not in _PLAIN and not (_ACCEPTS[dtype](min(values)) and _ACCEPTS[dtype](max(values))):
        raise _NotPlain
    return _array(values, dtype).reshape(shape)


def _walked(value: Any, dtype: int) -> np.ndarray:
    """Value by value, in TF Serving's order."""
    shape = _shape(value)
    leaves: list[Any] = []
    left = [(value, 0)]
    while left:
        item, level = left.pop()
        if isinstance(item, list):
            if level >= len(shape):
                raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
            if len(item) != shape[level]:
                raise invalid_argument(
                    f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {shape[level]}"
                )
            left.extend((child, level + 1) for child in reversed(item))
            continue
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {json_document.show(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        leaves.append(_leaf(item, dtype))
    return _array(leaves, dtype).reshape(shape)


def _leaf(value: Any, dtype: int) -> Any:
    if isinstance(value, JsonObject) and dtype == types_pb2.DT_STRING:
        if not _is_base64(value):
            raise json_document.format_error(value, "not formatted correctly for base64 data").with_traceback(None)
        return _decoded(value["b64"])
    if dtype not in _ACCEPTS and not isinstance(value, JsonObject):
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {json_document.show(value)} to type: {_name(dtype)}",
        )
    if dtype not in _ACCEPTS or not _ACCEPTS[dtype](value):
        raise invalid_argument(
            f"JSON Value: {json_document.show(value)} Type: {json_document.kind(value)} is not of expected type: "
            f"{_name(dtype)}"
        )
    return value.encode() if dtype == types_pb2.DT_STRING else value


def _decoded(text: str) -> bytes:
    """Of base64, with or without padding."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def _shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    if len(shape) > tensors.MAX_RANK:
        raise invalid_argument(f"Expected a tensor of at most {tensors.MAX_RANK} dimensions, received {len(shape)}")
    return tuple(shape)


def _array(values: list[Any], dtype: int) -> np.ndarray:
    numpy_dtype = np.dtype(tf.dtypes.as_dtype(dtype).as_numpy_dtype)
    if dtype in _SMALL_INTEGERS:
        return np.array(values, np.int32).astype(numpy_dtype)
    with np.errstate(over="ignore"):  # 1e39 is Infinity in float32
        return np.array(values, numpy_dtype)


def _name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


# ------------------------------------------------------------------------------------------------------------- answers


def _check_rows(names: Sequence[str], outputs: Mapping[str, np.ndarray]) -> None:
    batch = 0
    for name in names:
        if not outputs[name].ndim:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        size = len(outputs[name])
        if size < 1:
            raise invalid_argument(f"Tensor name: {name} has invalid batch size: {size}")
        if batch not in (0, size):
            raise invalid_argument(f"Tensor name: {name} has inconsistent batch size: {size} expecting: {batch}")
        batch = size


def _writable(name: str, array: np.ndarray) -> Any:
    """An array that orjson writes, or nested lists of strings; `..._bytes` are written in base64."""
    if array.dtype == np.float32:
        array = _as_decimals(array)
    if array.dtype != object:
        return np.ascontiguousarray(array) if array.ndim else array[()]
    write: Callable[[bytes], Any] = (
        (lambda data: {"b64": base64.b64encode(data).decode()})
        if name.endswith("_bytes")
        else (lambda data: data.decode("utf-8", "replace"))
    )
    flat = np.empty(array.size, object)
    flat[:] = [write(data) for data in array.ravel()]
    return flat.reshape(array.shape).tolist()


def _as_decimals(array: np.ndarray) -> np.ndarray:
    """float64 numbers whose shortest text is TF Serving's for float32: 6 digits if they are enough, else 9."""
    exact = array.astype(np.float64)
    size = np.abs(exact)
    if np.all((size == 0) | ((size >= 1e-10) & (size < 1e9)) | ~np.isfinite(size)):
        return _rounded(array, exact)
    return _rounded(array, exact.astype(np.longdouble))  # powers of ten beyond those that a float64 has exactly


def _rounded(array: np.ndarray, exact: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log10(np.abs(exact)))
        exponent = np.where(np.isfinite(exponent), exponent, 0).astype(int)
        long, short = (_with_digits(exact, digits - 1 - exponent) for digits in (9, 6))
        chosen = np.where(short.astype(np.float32) == array, short, long)
        return np.where(chosen.astype(np.float32) == array, chosen, exact).astype(np.float64)


def _with_digits(exact: np.ndarray, decimals: np.ndarray) -> np.ndarray:
    """Rounded to so many digits behind the point; before it, if negative."""
    powers = _POWERS.astype(exact.dtype)
    up = powers[np.maximum(decimals, 0)]
    if decimals.min(initial=0) >= 0:
        return np.rint(exact * up) / up
    down = powers[np.maximum(-decimals, 0)]
    return np.rint(exact * up / down) / up * down


def _body(key: str, tree: Any) -> bytes:
    return b"".join((b'{\n    "', key.encode(), b'": ', _dumps(tree), b"\n}"))


def _dumps(tree: Any) -> bytes:
    """JSON with NaN and Infinity, which orjson writes as null: they are put in where the nulls are."""
    text: bytes = orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY)
    odd = [value for array in _floats(tree) for value in array[~np.isfinite(array)].tolist()]
    if not odd:
        return text
    pieces = text.split(b"null")
    if len(pieces) != len(odd) + 1:  # the word is in a string too
        slow: str = rapidjson.dumps(tree, number_mode=rapidjson.NM_NAN, default=lambda array: array.tolist())
        return slow.encode()
    tokens = [b"NaN" if math.isnan(value) else b"Infinity" if value > 0 else b"-Infinity" for value in odd]
    return b"".join(itertools.chain.from_iterable(zip(pieces, [*tokens, b""], strict=True)))


def _floats(tree: Any) -> Iterator[np.ndarray]:
    """The arrays of floating point numbers, in the order in which they are written."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _floats(value)
    elif isinstance(tree, np.ndarray | np.floating) and tree.dtype.kind == "f":
        yield np.ravel(tree)
