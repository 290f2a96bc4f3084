import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import ExportError
from exporter.monitor.sample import draw

X = np.arange(1000, dtype=np.float32)[:, None]
LABELS = np.repeat([3, 1, 2], [700, 200, 100])


def test_classes_are_in_proportion_and_in_order():
    sample = draw(X, LABELS, 20, seed=0)
    np.testing.assert_array_equal(LABELS[sample.indices], np.repeat([1, 2, 3], [4, 2, 14]))
    np.testing.assert_array_equal(sample.inputs[""][:, 0], sample.indices)
    np.testing.assert_array_equal(sample.targets.argmax(1), np.repeat([0, 1, 2], [4, 2, 14]))


def test_the_same_seed_draws_the_same_examples_and_another_others():
    first, again, other = (draw(X, LABELS, 20, seed).indices for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(set(first) & set(other)) < 5
    assert list(draw(X, None, 4, seed=0).indices) == [90, 72, 870, 51]  # on any machine


def test_numbers_are_ordered_and_spread():
    y = np.sin(X[:, 0])
    sample = draw(X, y, 10, seed=0)
    assert list(sample.targets[:, 0]) == sorted(sample.targets[:, 0])
    np.testing.assert_allclose(sample.targets[:, 0], np.quantile(y, (np.arange(10) + 0.5) / 10), atol=0.01)


def test_no_more_than_there_are_and_each_once():
    assert sorted(draw(X, LABELS, 5000, seed=0).indices) == list(range(1000))


def test_fewer_of_it_are_of_all_classes_too():
    sample, chosen = draw(X, LABELS, 100, seed=0).fewer(10)
    np.testing.assert_array_equal(LABELS[sample.indices], np.repeat([1, 2, 3], [2, 1, 7]))
    np.testing.assert_array_equal(draw(X, LABELS, 100, seed=0).indices[chosen], sample.indices)
    assert len(sample) == len(sample.targets) == len(sample.inputs[""]) == 10


def test_tensors_and_structures():
    sample = draw({"a": tf.constant(X), "b": X.astype(int)}, LABELS.tolist(), 5, seed=0)
    assert sample.is_named
    np.testing.assert_array_equal(sample.inputs["a"], sample.inputs["b"])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, LABELS[:-1], "as many examples in x and y, at least one, received x: 1000, y: 999"),
        ({"a": X, "b": X[1:]}, None, "received x a: 1000, x b: 999"),
        (X[:0], LABELS[:0], "received x: 0, y: 0"),
        (tf.data.Dataset.from_tensor_slices(X), None, "x: expected arrays .* of a tf.data.Dataset pass some examples"),
        (X, 3, "y: expected arrays with examples on axis 0, received int"),
    ],
)
def test_what_is_wrong_is_said(x, y, message):
    with pytest.raises(ExportError, match=message):
        draw(x, y, 5, seed=0)
