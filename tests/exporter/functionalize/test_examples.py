import numpy as np
import pytest

from exporter.errors import ExportError
from exporter.functionalize.examples import Examples
from exporter.functionalize.tracing import TensorSpec
from exporter.functionalize.vocabularies import Vocabulary
from serving.shared import reference

NUMBER, TEXT = TensorSpec("size", (None, 2), "float32"), TensorSpec("word", (None, None), "string")
RIGHT = {"size": np.ones((3, 2)), "word": np.array([["a"], ["b"], ["c"]])}


def test_numbers_are_those_that_any_machine_makes():
    examples = Examples([NUMBER], {})
    assert examples.reproducible
    np.testing.assert_array_equal(examples(3)[0], reference.examples([((None, 2), "float32")], 3)[0])


def test_texts_are_drawn_from_vocabularies():
    examples = Examples([NUMBER, TEXT], {"word": Vocabulary((b"a", b"b"))})
    numbers, words = examples(5)
    assert not examples.reproducible
    assert set(words.ravel()) == {b"a", b"b"}
    assert words.shape == (5, 1)
    np.testing.assert_array_equal(words, examples(5)[1])
    np.testing.assert_array_equal(words[:3], examples(3)[1])
    np.testing.assert_array_equal(numbers, reference.examples([((None, 2), "float32")], 5)[0])


def test_open_axes_differ_from_seed_to_seed():
    examples = Examples([TEXT], {"word": Vocabulary((b"a",), joined=True)})
    assert examples(2, seed=1)[0].shape == (2, 2)
    assert all(set(text.split()) == {b"a"} for text in examples(2)[0].flat)


def test_given_are_repeated():
    examples = Examples([NUMBER, TEXT], {}, RIGHT)
    assert examples(4)[1].tolist() == [[b"a"], [b"b"], [b"c"], [b"a"]]
    assert examples(2, seed=1)[1].tolist() == [[b"c"], [b"a"]]
    assert examples(2)[0].dtype == np.float32
    assert not examples.reproducible


def test_a_single_input_may_be_x():
    assert len(Examples([NUMBER], {}, {"x": np.ones((2, 2)), "y": np.ones(2)})(2)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word": None}, "word: expected an array of this name, received size"),
        ({"size": np.ones((3, 4))}, r"size: expected float32 \(n, 2\), received shape \(3, 4\)"),
        ({"size": np.ones(3)}, r"received shape \(3,\)"),
        ({"size": np.ones((3, 2), complex)}, "received complex128"),
        ({"size": np.array([["a", "b"]] * 3)}, "received <U1"),
        ({"word": np.ones((3, 1))}, r"word: expected string \(n, n\), received float64"),
        ({"size": np.full((3, 2), np.nan)}, "of finite numbers, received NaN or infinity"),
        ({"size": np.ones((2, 2))}, r"as many rows in each of size, word, received \[2, 3\]"),
        ({"size": np.ones((0, 2)), "word": np.zeros((0, 1), str)}, "at least 2 rows, .* received 0"),
    ],
)
def test_what_does_not_fit(change, message):
    given = {name: array for name, array in {**RIGHT, **change}.items() if array is not None}
    with pytest.raises(ExportError, match=f"^export.examples: .*{message}"):
        Examples([NUMBER, TEXT], {}, given)


def test_all_that_is_wrong_is_said():
    with pytest.raises(ExportError, match=r"size: .*; word: "):
        Examples([NUMBER, TEXT], {}, {})
