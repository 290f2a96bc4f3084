"""Calls as requests, whose answers put together are the call's result."""

import numpy as np
import pytest

from serving.client import calls
from serving.client.errors import ServingError
from serving.client.model import SignatureSpec, TensorSpec

FLOAT = "DT_FLOAT"
KEPT = (3, 3, 2)  # a pair of axes and a diagonal one
SWAP = (1, 0, 3, 2, 4)


def limits(message):
    return calls.Limits(message, lambda dtype, length: dtype.itemsize)


def features(x):
    """(n, 3, 2) for each example."""
    return np.stack([x * k for k in range(1, 7)], 1).reshape(-1, 3, 2).astype(np.float32)


def kernel(x1, x2):
    """(n1, n2, 3, 3, 2); not symmetric in the two axes of size 3."""
    return np.einsum("aid,bjd->abijd", features(x1), features(x2) ** 2) + np.einsum(
        "aid,bjd->abijd", features(x1) ** 2, features(x2)
    )


def signature(*names, outputs=(None, None, *KEPT)):
    return SignatureSpec({name: TensorSpec((None,), FLOAT) for name in names}, {"ntk": TensorSpec(outputs, FLOAT)})


def filled(call, answer):
    ((shape, dtype),) = call.results.values()
    result = np.full(shape, np.nan, dtype)
    for request in call.requests:
        part = answer(request)
        assert np.all(np.isnan(result[request.place]))
        result[request.place] = part
        if request.mirrored:
            result[request.mirrored] = np.transpose(part, call.swap)
    return result


@pytest.mark.parametrize("message", [120, 400, 100_000])
def test_pairs(message):
    x1, x2 = np.arange(11, dtype=np.float32), np.arange(7, dtype=np.float32) - 3
    call = calls.pairs(signature("x1", "x2"), {"x1": x1}, {"x2": x2}, limits(message))
    assert len(call.requests) == 1 if message == 100_000 else len(call.requests) > 1
    result = filled(call, lambda r: kernel(r.inputs["x1"], r.inputs["x2"]))
    np.testing.assert_array_equal(result, kernel(x1, x2))


def test_pairs_at_other_parameters():
    """Which take room in every request."""
    x, params = np.arange(11, dtype=np.float32), {"params_w": np.ones(146, np.float32)}
    call = calls.pairs(signature("x1", "x2"), {"x1": x}, {"x2": x}, limits(600), params)
    assert {r.signature for r in call.requests} == {"ntk_with_params"}
    assert all(r.inputs["params_w"] is params["params_w"] for r in call.requests)
    assert len(call.requests) > len(calls.pairs(signature("x1", "x2"), {"x1": x}, {"x2": x}, limits(600)).requests)
    result = filled(call, lambda r: kernel(r.inputs["x1"], r.inputs["x2"]))
    np.testing.assert_array_equal(result, kernel(x, x))


def test_parameters_that_do_not_fit():
    x, params = np.arange(11, dtype=np.float32), {"params_w": np.ones(500, np.float32)}
    with pytest.raises(ServingError, match=r"at least 2,\d\d\d bytes for one pair of examples with its parameters"):
        calls.pairs(signature("x1", "x2"), {"x1": x}, {"x2": x}, limits(600), params)
    assert not calls.pairs(signature("x1", "x2"), {"x1": x[:0]}, {"x2": x}, limits(600), params).requests


@pytest.mark.parametrize("swap", [SWAP, None])
def test_symmetric(swap):
    x = np.arange(9, dtype=np.float32)
    call = calls.symmetric_split(signature("x"), {"x": x}, swap, limits(400))
    assert {r.signature for r in call.requests} == {"ntk", "ntk_symmetric"}
    assert all((r.mirrored is not None) == (swap is not None and r.signature == "ntk") for r in call.requests)

    def answer(request):
        if request.signature == "ntk_symmetric":
            return kernel(request.inputs["x"], request.inputs["x"])
        return kernel(request.inputs["x1"], request.inputs["x2"])

    np.testing.assert_array_equal(filled(call, answer), kernel(x, x))


def test_symmetric_that_fits_is_one_request():
    x = np.arange(5, dtype=np.float32)
    call = calls.symmetric(signature("x"), {"x": x}, limits(10_000))
    assert [r.signature for r in call.requests] == ["ntk_symmetric"]
    assert calls.symmetric(signature("x"), {"x": x}, limits(400)) is None


def test_rows_of_several_inputs():
    x = {"x_a": np.arange(20, dtype=np.float32), "x_b": np.arange(40, dtype=np.float32).reshape(20, 2)}
    call = calls.rowwise("forward", signature("x_a", "x_b", outputs=(None, 2)), x, limits(50))
    assert len(call.requests) > 1
    result = filled(call, lambda r: r.inputs["x_a"][:, None] + r.inputs["x_b"])
    np.testing.assert_array_equal(result, x["x_a"][:, None] + x["x_b"])


def test_no_examples_need_no_request():
    none = np.zeros(0, np.float32)
    spec = signature("x1", "x2", "x")
    one = calls.pairs(spec, {"x1": none}, {"x2": np.ones(4, np.float32)}, limits(400))
    two = calls.symmetric(spec, {"x": none}, limits(400))
    three = calls.rowwise("forward", signature("x", outputs=(None, 2)), {"x": none}, limits(400))
    assert (one.requests, two.requests, three.requests) == ([], [], [])
    shapes = [shape for call in (one, two, three) for shape, _ in call.results.values()]
    assert shapes == [(0, 4, *KEPT), (0, 0, *KEPT), (0, 2)]
