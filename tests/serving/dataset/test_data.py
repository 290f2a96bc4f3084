"""A data set as a model takes it."""

import numpy as np
import pytest

from serving.dataset.data import Data
from serving.dataset.errors import DatasetError

ONE = [{"name": "image", "shape": [None, 2, 2], "dtype": "float32", "input": "x"}]
TWO = [
    {"name": "tokens", "shape": [None, None], "dtype": "int32", "input": "x_tokens"},
    {"name": "text", "shape": [None], "dtype": "string", "input": "x_text"},
]


@pytest.fixture
def saved(tmp_path):
    def save(**arrays):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        np.savez(path, **arrays)
        return str(path)

    return save


def test_rows_as_the_signatures_take_them(saved):
    x = np.arange(20, dtype=np.uint8).reshape(5, 2, 2)
    for name in ("x", "image"):
        rows = Data(saved(**{name: x, "y": np.arange(5)}), ONE).read(1, 4)
        assert rows.inputs[""].dtype == np.float32
        np.testing.assert_array_equal(rows.inputs[""], x[1:4])
        np.testing.assert_array_equal(rows.y, [1, 2, 3])
        assert rows.id is None
    two = Data(
        saved(tokens=np.ones((3, 4), np.int64), text=np.array(["a", "bc", "d"]), id=np.array([b"i", b"j", b"k"])), TWO
    )
    rows = two.read(0, 3)
    assert rows.inputs["_tokens"].dtype == np.int32
    assert rows.inputs["_text"].tolist() == ["a", "bc", "d"]
    assert two.ids().tolist() == ["i", "j", "k"]


def test_digests_tell_data_apart(saved):
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 2, 2), np.float32), np.arange(6)
    digest = Data(saved(x=x, y=y), ONE).check()
    assert Data(saved(x=x, y=y), ONE).check() == digest
    changed = x.copy()
    changed[3, 0, 1] += 1e-3
    others = [Data(saved(**arrays), ONE) for arrays in ({"x": changed, "y": y}, {"x": x, "y": y + 1}, {"x": x})]
    assert len({digest, *(data.check() for data in others)}) == 4
    fingerprints = [Data(saved(x=values), ONE).fingerprint() for values in (x, x[:5], x[::-1], changed)]
    assert len(set(fingerprints)) == 3  # which looks at the ends alone
    assert fingerprints[0] == fingerprints[3]


@pytest.mark.parametrize("part_bytes", [1, 50, 1 << 20])
def test_all_of_it_is_read(saved, monkeypatch, part_bytes):
    monkeypatch.setattr("serving.dataset.data._READ_BYTES", part_bytes)
    x = np.random.default_rng(0).random((9, 2, 2), np.float32)
    data, read = Data(saved(x=x, y=np.arange(9), id=np.arange(9) + 100), ONE), []
    data.check(read.append)
    assert sum(read) == 9
    assert data.ids().tolist() == list(range(100, 109))
    assert data.targets().tolist() == list(range(9))
    x[8, 1, 1] = np.nan
    with pytest.raises(DatasetError, match=r"expected finite numbers, received nan in 'x', example 8"):
        Data(saved(x=x), ONE).check()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imag": np.zeros((2, 2, 2))}, r"expected the model's input 'x', received imag"),
        ({"x": np.zeros((2, 2, 2)), "ids": np.zeros(2)}, r"received 'ids' too; did you mean 'id'\?"),
        ({"x": np.zeros((2, 2, 3))}, r"expected 'x' of float32 \(n, 2, 2\), received float64 \(n, 2, 3\)"),
        ({"x": np.zeros((2, 2, 2), complex)}, r"received complex128"),
        ({"x": np.zeros((2, 2, 2)), "y": np.array(["a", "b"])}, r"expected 'y' of numbers"),
        ({"x": np.zeros((2, 2, 2)), "id": np.zeros((2, 1))}, r"expected 'id' of integers or texts with one axis"),
        ({"x": np.zeros((0, 2, 2))}, r"expected examples, received none"),
        ({"x": np.zeros((2, 2, 2)), "y": np.array([0.0, np.inf])}, r"received inf in 'y', example 1"),
    ],
)
def test_what_is_wrong_is_said(saved, arrays, message):
    with pytest.raises(DatasetError, match=message):
        Data(saved(**arrays), ONE).check()


def test_integers_that_do_not_fit_are_refused(saved):
    arrays = {"tokens": np.array([[2**40]]), "text": np.array(["a"])}
    with pytest.raises(DatasetError, match="with values that it cannot hold"):
        Data(saved(**arrays), TWO).check()
