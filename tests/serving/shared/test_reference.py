"""Examples by a formula, which must not change: exports of the past are checked with it."""

import math

import numpy as np
import pytest

from serving.shared import reference


def test_examples_are_these_for_ever():
    floats, ints = reference.examples([([None, 2, 2], "float32"), ([None, 3], "int32")], 2)
    assert floats.tolist() == [
        [[1.5390625, -0.2734375], [-1.8984375, 1.8828125]],
        [[-1.5703125, -0.6953125], [-1.3046875, 1.0859375]],
    ]
    assert ints.tolist() == [[1, 1, 1], [0, 1, 0]]
    assert floats.dtype == np.float32
    assert ints.dtype == np.int32


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_float_holds_them_exactly(dtype):
    (exact,) = reference.examples([([None, 500], "float64")], 4)
    (rounded,) = reference.examples([([None, 500], dtype)], 4)
    np.testing.assert_array_equal(rounded.astype(np.float64), exact)
    assert np.all(np.abs(exact) < 2)
    assert 1.0 < np.var(exact) < 1.7
    assert abs(np.mean(exact)) < 0.1
    assert len(np.unique(exact)) > 200


def test_examples_differ_between_inputs_and_seeds_and_not_with_their_number():
    spec = ([None, 50], "float32")
    a, b = reference.examples([spec, spec], 3)
    (c,) = reference.examples([spec], 3, seed=1)
    (d,) = reference.examples([spec], 2)
    assert not np.any(np.all(a == b, axis=1))
    assert not np.any(np.all(a == c, axis=1))
    np.testing.assert_array_equal(a[:2], d)


def test_integers_are_0_or_1():
    (x,) = reference.examples([([None, 100], "int64")], 3)
    assert set(x.ravel()) == {0, 1}


def test_record_and_difference():
    result = np.arange(200.0).reshape(10, 20)
    recorded = reference.record(result)
    assert recorded["shape"] == [10, 20]
    assert recorded["largest"] == 199
    assert len(recorded["values"]) == 32
    assert reference.difference(recorded, result) == 0
    assert reference.difference(recorded, 1.01 * result) == pytest.approx(0.01)
    assert reference.difference(recorded, result[:5]) == math.inf
    assert reference.difference(recorded, np.where(result == 0, np.nan, result)) == math.inf


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_small_results(shape):
    result = np.ones(shape)
    assert reference.difference(reference.record(result), result) == 0


def test_booleans_are_both():
    (flags,) = reference.examples([((None, 8), "bool")], 4)
    assert set(flags.ravel()) == {False, True}
