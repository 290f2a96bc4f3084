"""What users pass, as a signature's inputs; and what they are told if it does not fit."""

import numpy as np
import pytest

from serving.client.arguments import named_inputs, param_inputs, side_inputs
from serving.client.errors import ServingError
from serving.client.model import SignatureSpec, TensorSpec

ONE = SignatureSpec({"x1": TensorSpec((None, 2), "DT_FLOAT"), "x2": TensorSpec((None, 2), "DT_FLOAT")}, {})
TWO = SignatureSpec({"x1_left_in": TensorSpec((None, 2), "DT_FLOAT"), "x1_b": TensorSpec((None,), "DT_INT32")}, {})
NAMES = {"left in": "x_left_in", "b": "x_b"}
A, B = np.ones((3, 2), np.float32), np.arange(3, dtype=np.int32)


@pytest.mark.parametrize("value", [A, A.tolist(), A.astype(np.float64), {"anything": A}, np.asfortranarray(A)])
def test_one_input(value):
    (array,) = side_inputs("x1", value, ONE, None).values()
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, A)


@pytest.mark.parametrize("value", [(A, B), [A, B], {"b": B, "left in": A}, (A, B.astype(np.int64))])
def test_several_inputs(value):
    inputs = side_inputs("x1", value, TWO, NAMES)
    assert {name: array.dtype for name, array in inputs.items()} == {"x1_left_in": np.float32, "x1_b": np.int32}


def test_a_dict_needs_no_order():
    assert set(side_inputs("x1", {"left_in": A, "b": B}, TWO, None)) == {"x1_left_in", "x1_b"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((3, 4), np.float32), r"x1: expected float32 \(n, 2\), received float32 \(3, 4\)"),
        (np.ones(2, np.float32), r"x1: expected float32 \(n, 2\), received float32 \(2,\)"),
        (np.ones((3, 2), np.complex64), r"x1: expected float32 \(n, 2\), received complex64"),
        (np.array([["a", "b"]]), r"x1: expected float32 \(n, 2\), received <U1"),
        ({"a": A, "b": A}, "x1: expected one array, received a dict with a, b"),
        ({}, "x1: expected one array, received a dict with none"),
    ],
)
def test_what_does_not_fit_one_input(value, message):
    with pytest.raises(ServingError, match=message) as error:
        side_inputs("x1", value, ONE, None)
    assert error.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("value", "names", "message"),
    [
        (A, NAMES, "x1: expected a dict or a tuple with left in, b, received ndarray"),
        ((A,), NAMES, r"x1: expected 2 arrays \(left in, b\), received 1"),
        ((A, B), None, "x1: the order of the inputs is not known; expected a dict with left_in, b"),
        ({"left in": A, "c": B}, NAMES, "x1: expected a dict with left in, b, received left in, c"),
        ((A, B[:2]), NAMES, r"expected as many examples in each of x1_left_in, x1_b, received \[3, 2\]"),
        ((A, B + 0.5), NAMES, r"x1_b: expected int32 \(n,\), received float64"),
        (
            (A, B.astype(np.int64) + 2**40),
            NAMES,
            r"x1_b: expected int32 \(n,\), received int64 values that it cannot hold",
        ),
        ((A[:, :1], B + 0.5), NAMES, r"x1_left_in: expected float32 \(n, 2\), .*; x1_b: expected int32"),
    ],
)
def test_what_does_not_fit_several_inputs(value, names, message):
    with pytest.raises(ServingError, match=message):
        side_inputs("x1", value, TWO, names)


def test_a_signature_without_that_side():
    with pytest.raises(ServingError, match="x: the signature takes no such input"):
        side_inputs("x", A, ONE, None)


PARAMS = SignatureSpec({"params_a_w": TensorSpec((2, 3), "DT_FLOAT"), "params_g": TensorSpec((), "DT_FLOAT")}, {})
PATHS = {"a/w": "params_a_w", "g": "params_g"}


def test_parameters_by_path():
    inputs = param_inputs({"g": 2.0, "a/w": np.ones((2, 3))}, PARAMS, PATHS)
    assert {name: (array.dtype, array.shape) for name, array in inputs.items()} == {
        "params_a_w": (np.float32, (2, 3)),
        "params_g": (np.float32, ()),
    }


@pytest.mark.parametrize(
    ("params", "names", "message"),
    [
        ({"g": 2.0}, PATHS, "expected an array for each of a/w, g; no a/w"),
        ({"g": 2.0, "a/w": np.ones((3, 2))}, PATHS, r"a/w: expected float32 \(2, 3\), received float32 \(3, 2\)"),
        ({"g": 2.0, "a/w": np.ones((2, 3)), "h": 1.0}, PATHS, "no variable 'h' is trainable"),
        ({}, None, "the paths of the variables are not known"),
    ],
)
def test_parameters_that_do_not_fit(params, names, message):
    with pytest.raises(ServingError, match=message) as error:
        param_inputs(params, PARAMS, names)
    assert error.value.code == "INVALID_ARGUMENT"


def test_inputs_of_any_signature():
    inputs = named_inputs({"x1_left_in": A.tolist(), "x1_b": [1, 2, 3]}, TWO)
    assert {name: array.dtype for name, array in inputs.items()} == {"x1_left_in": np.float32, "x1_b": np.int32}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x1_left_in": A}, "no x1_b"),
        ({"x1_left_in": A, "x1_b": B, "y": B}, "no input is named 'y'"),
        ({"x1_left_in": A, "x1_b": [2**31]}, r"x1_b: expected int32 \(n,\), received int64 values that it cannot hold"),
        ({"x1_left_in": A, "x1_b": ["1"]}, r"x1_b: expected int32 \(n,\), received <U1"),
        ({"x1_left_in": A, "x1_b": [0.5]}, r"x1_b: expected int32 \(n,\), received float64"),
    ],
)
def test_inputs_of_any_signature_that_do_not_fit(inputs, message):
    with pytest.raises(ServingError, match=f"expected an array for each of x1_left_in, x1_b; .*{message}"):
        named_inputs(inputs, TWO)
