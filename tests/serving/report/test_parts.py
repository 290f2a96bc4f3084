"""Targets, samples, pictures, kept axes, texts."""

import base64

import numpy as np
import pytest
import tensorflow as tf

from exporter.ntk.reference import contract_axes
from serving.dataset.data import Data, Rows
from serving.report import asking, gallery, sample, section
from serving.report.answers import Answers
from serving.report.pictures import Pictures, is_image, to_pixels
from serving.report.predictions import predictions_section
from serving.report.targets import targets_of


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (np.array([2, 0, 2]), [2, 0, 2]),
        (np.array([[2], [0], [2]]), [2, 0, 2]),
        (np.array([True, False, True]), [1, 0, 1]),
        (np.array([[0.0, 0, 1], [1, 0, 0], [0, 0, 1]]), [2, 0, 2]),
        (np.array([2.0, 0.0, 2.0]), None),
        (np.array([[1.0, 1.0], [0, 1], [0, 1]]), None),
        (np.arange(2000), None),
    ],
)
def test_classes_and_numbers(y, labels):
    targets = targets_of(y)
    assert (None if targets.labels is None else targets.labels.tolist()) == labels
    if labels:
        assert targets.names == ("0", "2") if 2 in labels else ("0", "1")
        np.testing.assert_array_equal(targets.matrix[:, -1], [1, 0, 1])
        assert targets_of(y, numbers=True).labels is None


@pytest.mark.parametrize("axes", [((-1,), ()), ((), ()), ((), (1,)), ((1,), ()), ((), (1, 2)), ((1,), (2,))])
def test_kept_axes_become_their_mean(axes):
    trace, diagonal = axes
    full = np.random.default_rng(0).standard_normal((4, 2, 3, 5, 2, 3))
    manifest = {
        "configuration": {"ntk": {"trace_axes": trace, "diagonal_axes": diagonal}},
        "output": {"shape": [None, 2, 3]},
    }
    kernel = contract_axes(full, trace_axes=trace, diagonal_axes=diagonal)
    expected = contract_axes(full, trace_axes=(1, 2), diagonal_axes=())
    np.testing.assert_allclose(asking.mean_over_kept(kernel, manifest), expected)


INPUTS = [{"input": "x", "name": "x", "shape": [None, 2], "dtype": "float32"}]


def test_a_sample_is_always_the_same(tmp_path):
    x = np.random.default_rng(0).standard_normal((3000, 2)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(3000), id=np.arange(3000) + 7)
    data = Data(str(tmp_path / "d.npz"), INPUTS)
    one, other = sample.draw(data, 50), sample.draw(data, 50)
    np.testing.assert_array_equal(one.rows, other.rows)
    assert len(one) == len(set(one.rows.tolist())) == 50
    np.testing.assert_array_equal(one.examples.inputs[""], x[one.rows])
    np.testing.assert_array_equal(one.examples.y, one.rows)
    assert one.names[0] == str(one.rows[0] + 7)
    assert len(sample.draw(data, 5000)) == 3000


def test_images():
    images = np.random.default_rng(0).random((3, 5, 4, 3)).astype(np.float32)
    shown = Pictures(INPUTS, Rows({"": images}, None, None))
    assert shown.images
    content = shown.show(Rows({"": images}, None, None), 1).partition("base64,")[2].partition('"')[0]
    pixels = tf.io.decode_png(base64.b64decode(content)).numpy()
    np.testing.assert_array_equal(pixels, np.round(images[1] * 255))


def test_large_images_are_made_small():
    image = np.zeros((200, 100))
    image[:100] = 1
    pixels = to_pixels(image, 0, 1)
    assert pixels.shape == (50, 25, 1)
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (255, 0)


def test_encoded_images():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, 3), np.uint8)
    files = np.array([tf.io.encode_png(pixels).numpy(), b"\x89PNG, but damaged"], object)
    shown = Pictures(INPUTS, Rows({"": files}, None, None))
    assert shown.images
    content = shown.show(Rows({"": files}, None, None), 0).partition("base64,")[2].partition('"')[0]
    np.testing.assert_array_equal(tf.io.decode_png(base64.b64decode(content)).numpy(), pixels)
    assert "an image of 17 bytes" in shown.show(Rows({"": files}, None, None), 1)


@pytest.mark.parametrize(
    ("shape", "dtype", "image"),
    [
        ((8, 8, 1), "f4", True),
        ((28, 28), "u1", True),
        ((5, 4, 3), "f4", True),
        ((8, 9), "f4", False),
        ((8, 8, 2), "f4", False),
        ((3, 3, 3), "f4", False),
        ((4,), "f4", False),
        ((8, 8), "O", False),
    ],
)
def test_what_is_an_image(shape, dtype, image):
    assert is_image(shape, np.dtype(dtype)) == image


def test_texts_and_numbers():
    texts = np.array([b"<b>caf\xc3\xa9</b>", "x" * 400], object)
    shown = Pictures(INPUTS, Rows({"": texts}, None, None))
    assert "&lt;b&gt;café" in shown.show(Rows({"": texts}, None, None), 0)
    assert "…" in shown.show(Rows({"": texts}, None, None), 1)
    table = np.arange(20, dtype=np.float32)[None] / 3
    assert "0.333" in Pictures(INPUTS, Rows({"": table}, None, None)).show(Rows({"": table}, None, None), 0)
    tokens = np.array([[3, 1, 4]])
    assert "3, 1, 4" in Pictures(INPUTS, Rows({"": tokens}, None, None)).show(Rows({"": tokens}, None, None), 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5678, "1,235"), (0.0123456, "0.01235"), (1.2e-7, "1.200e-07"), (float("nan"), "undefined")],
)
def test_numbers_for_people(value, text):
    assert section.number(value) == text


def test_counts_for_people():
    assert section.counted(1, "example") == "1 example"
    assert section.counted(1200, "class") == "1,200 classes"


@pytest.mark.parametrize(("largest", "end"), [(0.0, 0.01), (0.076, 0.1), (0.1, 0.2), (0.6, 1.0), (1.0, 1.0)])
def test_the_axis_of_novelty_ends_above_the_examples(largest, end):
    assert gallery._upper(np.array([0.0, largest])) == end


def test_predictions_that_are_those_of_the_network_are_told_once():
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]))
    mean, one = np.exp(logits), np.ones(3)
    answers = Answers(None, {"network_output": "logits"}, mean, one, one, None)
    section, accuracy = predictions_section(logits, targets_of(np.array([0, 1, 1])), answers, list("abc"))
    assert section.sentence.startswith("Predict is right on 66.7% of 3 examples at a mean confidence of 80.0%")
    assert section.sentence.endswith(", and so is the network.")
    assert accuracy == "66.7%"
    alone, _ = predictions_section(logits[:, 1:] - logits[:, :1], targets_of(np.array([0, 1, 1])), None, list("abc"))
    assert "The network is right on 66.7% of 3 examples at a mean confidence of 80.0%" in alone.sentence
