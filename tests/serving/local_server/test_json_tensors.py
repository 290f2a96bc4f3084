import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from serving.local_server import json_document, json_tensors
from serving.local_server.errors import ServingError


def infos(**dtypes):
    return {name: meta_graph_pb2.TensorInfo(dtype=dtype.as_datatype_enum) for name, dtype in dtypes.items()}


def read(body, **dtypes):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json_tensors.read_inputs(json_document.parse(text), "", infos(**(dtypes or {"x": tf.float32})))


def problem(body, **dtypes):
    with pytest.raises(ServingError) as error:
        read(body, **dtypes)
    return str(error.value)


# --------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize("value", [1.5, 2, [1, 2.5], [[1], [2]], [], [[], []], [[[0.1]]]])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_columns(value, dtype):
    for body in ({"inputs": value}, {"inputs": {"x": value}}):
        arrays, layout = read(body, x=dtype)
        assert layout == "column"
        assert arrays["x"].dtype == dtype.as_numpy_dtype
        np.testing.assert_array_equal(arrays["x"], np.array(value, dtype.as_numpy_dtype))


@pytest.mark.parametrize("rows", [[1, 2], [[1, 2], [3, 4]], [[], []]])
def test_rows(rows):
    for body in ({"instances": rows}, {"instances": [{"x": row} for row in rows]}):
        arrays, layout = read(body)
        assert layout == "row"
        np.testing.assert_array_equal(arrays["x"], np.array(rows, "f"))


def test_rows_of_several_inputs():
    arrays, _ = read({"instances": [{"b": 1, "a": [2, 3]}, {"a": [4, 5], "b": 6}]}, a=tf.float32, b=tf.int32)
    np.testing.assert_array_equal(arrays["a"], [[2, 3], [4, 5]])
    np.testing.assert_array_equal(arrays["b"], np.array([1, 6], np.int32))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (tf.int32, [-(2**31), 2**31 - 1]),
        (tf.int64, [-(2**63), 2**63 - 1]),
        (tf.uint32, [0, 2**32 - 1]),
        (tf.uint64, [0, 2**64 - 1]),
        (tf.bool, [True, False]),
        (tf.string, ["a", "€"]),
    ],
)
def test_dtypes(dtype, values):
    for body in ({"inputs": values}, {"instances": values}):
        array = read(body, x=dtype)[0]["x"]
        assert array.dtype == dtype.as_numpy_dtype
        expected = [value.encode() for value in values] if dtype == tf.string else values
        assert array.tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "value", "name"),
    [
        (tf.int32, 2**31, "int32"),
        (tf.int32, 1.0, "int32"),
        (tf.int8, "1", "int8"),
        (tf.int64, 2**63, "int64"),
        (tf.uint32, -1, "uint32"),
        (tf.uint64, -1, "uint64"),
        (tf.bool, 0, "bool"),
        (tf.float32, True, "float"),
        (tf.float64, "NaN", "double"),
        (tf.string, 1, "string"),
    ],
)
def test_values_of_another_type_are_refused(dtype, value, name):
    message = problem({"inputs": [value]}, x=dtype)
    assert message.startswith(f"JSON Value: {json.dumps(value)} Type: ")
    assert message.endswith(f" is not of expected type: {name}")


def test_numbers_that_are_no_json():
    arrays, _ = read(b'{"inputs": [NaN, -Infinity, 1e39, -1e39, 1e-50]}')
    np.testing.assert_array_equal(arrays["x"], np.array([np.nan, -np.inf, np.inf, -np.inf, 0], "f"))


def test_base64():
    for text in ("AAEC/w==", "AAEC/w"):
        assert read({"inputs": {"b64": text}}, x=tf.string)[0]["x"][()] == b"\0\1\2\xff"
        assert read({"instances": [{"b64": text}, "abc"]}, x=tf.string)[0]["x"].tolist() == [b"\0\1\2\xff", b"abc"]
        assert read({"instances": [{"x": {"b64": text}}]}, x=tf.string)[0]["x"].tolist() == [b"\0\1\2\xff"]
    assert problem({"inputs": [{"b64": "!"}]}, x=tf.string) == "Unable to base64 decode"
    assert "not formatted correctly for base64 data" in problem({"inputs": [{"b64": 1}]}, x=tf.string)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ([1, [2]], "Encountered list at unexpected level: 1 expected < 1"),
        ([[1], 2], "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ([{"a": 1}], 'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: float'),
        ([[[]] * 2, [[0], []]], "Encountered list at unexpected size: 1 at level: 2 expected size: 0"),
    ],
)
def test_lists_that_are_no_tensor(value, message):
    assert problem({"inputs": {"x": value}}) == message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], [3]], "1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1"),
        (
            [[[1, 2]], [[3], [4]]],
            "1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [1,2] but got: [2,1]",
        ),
        (
            [{"x": 1}, {"y": 2}],
            "1 key: y of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named input: y",
        ),
        ([{"x": 1}, {}], "1 of 'instances' list. JSON object: {} must only have keys: x"),
    ],
)
def test_rows_that_are_no_examples(rows, message):
    assert problem({"instances": rows}) == f"Failed to process element: {message}"


def test_rows_of_different_kinds():
    expected = "Expecting {} at item 1 of input list"
    assert problem({"instances": [{"x": 1}, [1]]}) == expected.format("object but got list")
    assert problem({"instances": [[1], {"x": 1}]}) == expected.format("value/list but got object")


def test_a_signature_without_inputs():
    with pytest.raises(ServingError, match=r"^Failed to get input map for signature: DEFAULT$"):
        json_tensors.read_inputs(json_document.parse(b"{}"), "", {})


def test_more_dimensions_than_there_can_be():
    assert problem(b'{"inputs": ' + b"[" * 65 + b"]" * 65 + b"}").startswith("Expected a tensor of at most 64")


# -------------------------------------------------------------------------------------------------------------- output


def written(layout="column", **outputs):
    return json_tensors.write_outputs(outputs, layout).decode()


def test_float32_is_written_with_as_many_digits_as_tf_serving_writes():
    values = [1.2, 0.1, 1 / 3, 16777216, 1.19999993, 123456.7, -1e-7, 3.4028235e38, 1e-45, 0.0, -0.0, 2.5e20]
    array = np.array(values, np.float32)
    text = json.loads(written(x=array), parse_float=str, parse_int=str)["outputs"]
    for number, shown in zip(array, text, strict=True):
        short = f"{number:.6g}"
        assert np.float32(shown) == number
        if 1e-9 < abs(number) < 1e20:
            expected = short if np.float32(short) == number else f"{number:.9g}"
            assert float(shown) == float(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32", "uint8", "int64", "uint64", "bool"])
def test_what_is_written_is_the_same_array(dtype):
    random = np.random.default_rng(0)
    for shape in ((), (0,), (3,), (2, 3), (2, 0)):
        array = (random.normal(size=shape) * 100).astype(dtype)
        read_back = np.array(json.loads(written(x=array))["outputs"], dtype)
        np.testing.assert_array_equal(read_back, array)


def test_numbers_that_are_not_finite():
    array = np.array([[np.nan, 1.5], [np.inf, -np.inf]])
    for dtype in ("float32", "float64"):
        text = written(x=array.astype(dtype))
        assert text.split(": ")[1].removesuffix("\n}") == "[[NaN,1.5],[Infinity,-Infinity]]"
        text = written("row", a=array.astype(dtype), b=np.array([1, np.nan], dtype))
        assert '[{"a":[NaN,1.5],"b":1.0},{"a":[Infinity,-Infinity],"b":NaN}]' in text
    text = written(a=np.array([np.nan, 1.0]), b=np.array([b"null", b"NaN"], object))
    assert json.loads(text)["outputs"]["b"] == ["null", "NaN"]
    assert np.isnan(json.loads(text)["outputs"]["a"][0])


def test_rows_and_columns():
    outputs = {"b": np.array([1, 2]), "a": np.array([[3], [4]])}
    assert json.loads(written("row", **outputs)) == {"predictions": [{"a": [3], "b": 1}, {"a": [4], "b": 2}]}
    assert json.loads(written(**outputs)) == {"outputs": {"a": [[3], [4]], "b": [1, 2]}}
    assert json.loads(written("row", a=outputs["a"])) == {"predictions": [[3], [4]]}
    assert json.loads(written(a=outputs["a"])) == {"outputs": [[3], [4]]}


def test_strings_and_bytes():
    array = np.array([[b"a"], [b"\xff"]], object)
    assert json.loads(written(x=array))["outputs"] == [["a"], ["\ufffd"]]
    assert json.loads(written(x_bytes=array))["outputs"] == [[{"b64": "YQ=="}], [{"b64": "/w=="}]]
    assert json.loads(written(x=np.array(b"a", object)))["outputs"] == "a"


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"x": np.array(1.0)}, "Tensor name: x has no shape information "),
        ({"x": np.zeros((0, 2))}, "Tensor name: x has invalid batch size: 0"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "Tensor name: y has inconsistent batch size: 3 expecting: 2"),
        ({"x": np.zeros(1, np.float16)}, "Failed to write JSON value for tensor type: float16"),
        ({"x": np.zeros(1, np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
    ],
)
def test_outputs_that_are_no_rows(outputs, message):
    with pytest.raises(ServingError) as error:
        json_tensors.write_outputs(outputs, "row")
    assert str(error.value) == message
