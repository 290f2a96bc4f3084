"""Small models that begin with operations without JAX form: vocabularies, hashing, text, files of images."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import keras
import models
import numpy as np
import tensorflow as tf
import tf_keras

L = keras.layers
WORDS = ["red", "green", "blue"]


def texts(*values: Any) -> np.ndarray:
    """An array of bytes objects, as TensorFlow takes texts."""
    array = np.array(values, object)
    array.ravel()[:] = [v.encode() if isinstance(v, str) else v for v in array.ravel()]
    return array


def png(seed: int) -> bytes:
    """A random picture."""
    rng = np.random.default_rng(seed)
    return tf.io.encode_png(rng.integers(0, 255, (7 + seed, 9, 3), np.uint8)).numpy()


def pictures(n: int) -> np.ndarray:
    """n files of pictures of different sizes."""
    return texts(*map(png, range(n)))


def _random(model: Any) -> Any:
    models.randomize([v for v in model.variables if v.trainable])
    return model


def _keras(x: Any, y: Any) -> keras.Model:
    return _random(keras.Model(x, L.Dense(2)(L.Flatten()(y))))


def string_lookup(**options: Any) -> keras.Model:
    """Words by a vocabulary."""
    x = keras.Input((2,), dtype="string", name="words")
    y = L.StringLookup(vocabulary=WORDS, **options)(x)
    return _keras(x, y if "output_mode" in options else L.Embedding(6, 3)(y))


def string_and_number() -> keras.Model:
    """A table of mixed columns."""
    color, weight = keras.Input((1,), dtype="string", name="color"), keras.Input((1,), name="weight")
    y = L.Flatten()(L.Embedding(6, 3)(L.StringLookup(vocabulary=WORDS)(color)))
    return _keras([color, weight], L.Concatenate()([y, weight]))


def sentences() -> keras.Model:
    """A text, a word and a number."""
    text, word = keras.Input((), dtype="string", name="text"), keras.Input((1,), dtype="string", name="word")
    size = keras.Input((2,), name="size")
    y = L.Embedding(6, 3)(L.TextVectorization(vocabulary=WORDS, output_sequence_length=3)(text))
    z = L.StringLookup(vocabulary=WORDS, output_mode="one_hot")(word)
    return _random(keras.Model([text, word, size], L.Dense(2)(L.Concatenate()([L.Flatten()(y), z, size]))))


def integer_lookup(**options: Any) -> keras.Model:
    """Numbers of products, some beyond 32 bits."""
    x = keras.Input((2,), dtype="int64", name="ids")
    return _keras(x, L.Embedding(6, 3)(L.IntegerLookup(vocabulary=[3, 5, 2**40], **options)(x)))


def text_vectorization(**options: Any) -> keras.Model:
    """Sentences."""
    x = keras.Input((), dtype="string", name="text")
    y = L.TextVectorization(vocabulary=WORDS, **options)(x)
    return _keras(x, L.Embedding(6, 3)(y) if "output_mode" not in options else y)


def hashing() -> keras.Model:
    """Words without a vocabulary."""
    x = keras.Input((2,), dtype="string", name="words")
    return _keras(x, L.Embedding(5, 3)(L.Hashing(5)(x)))


def hashed_crossing() -> keras.Model:
    """Pairs of words."""
    a, b = (keras.Input((1,), dtype="string", name=name) for name in "ab")
    return _keras([a, b], L.HashedCrossing(7, output_mode="one_hot")((a, b)))


@keras.saving.register_keras_serializable("tests")
class FirstLetters(L.Layer):
    """The numbers of the first four letters of a text."""

    def call(self, text: Any) -> Any:
        """Texts of shape (n,)."""
        letters = tf.strings.unicode_split(text, "UTF-8")[:, :4]
        return tf.strings.to_hash_bucket_fast(letters.to_tensor("", shape=[None, 4]), 9)

    def compute_output_spec(self, text: Any) -> Any:
        """Four numbers for each text."""
        return keras.KerasTensor((None, 4), "int64")


def first_letters() -> keras.Model:
    """A layer of one's own."""
    x = keras.Input((), dtype="string", name="text")
    return _keras(x, L.Embedding(9, 3)(FirstLetters()(x)))


class _Words(tf.Module):
    """Mean length and number of the words of a text by ragged sums, of which JAX could do a part; and comparisons."""

    def __init__(self) -> None:
        super().__init__(name="words")
        self.scale = tf.Variable([[0.3, -1.2], [0.7, 0.2], [0.5, 1.1]])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def __call__(self, text: Any) -> Any:
        words = tf.strings.split(text)
        lengths = tf.ragged.map_flat_values(lambda flat: tf.cast(tf.strings.length(flat), tf.float32), words)
        mean = tf.reduce_sum(lengths, axis=1) / tf.cast(words.row_lengths() + 1, tf.float32)
        is_red = tf.cast(tf.equal(text, "red"), tf.float32)
        ones = tf.ones(tf.shape(text))  # of a text only the shape is asked for
        return tf.tanh(tf.stack([mean, is_red, ones], axis=1) @ self.scale)


class _Decoding(tf.Module):
    """Files of pictures."""

    def __init__(self, network: Any) -> None:
        super().__init__(name="decoding")
        self.network = network

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image")])
    def __call__(self, image: Any) -> Any:
        def decode(data: Any) -> Any:
            pixels = tf.io.decode_png(data, channels=3)
            return tf.image.resize(tf.cast(pixels, tf.float32) / 255.0, (5, 4))

        return self.network(tf.map_fn(decode, image, fn_output_signature=tf.TensorSpec((5, 4, 3), tf.float32)))


def decoding() -> tf.Module:
    """A network with decoding in front."""
    return _Decoding(_random(keras.Sequential([keras.Input((5, 4, 3)), L.Conv2D(2, 3), L.Flatten(), L.Dense(2)])))


class _Prices(tf.Module):
    """A mutable table of numbers by text, and one that is asked of no input."""

    def __init__(self) -> None:
        super().__init__(name="prices")
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, 0.5)
        self.table.insert(tf.constant(WORDS), tf.constant([0.1, 0.2, 0.3]))
        self.scale = tf.Variable([[0.3, -1.2]])

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.string, "word")])
    def __call__(self, word: Any) -> Any:
        offset = self.table.lookup(tf.constant(["blue"]))
        return tf.tanh((self.table.lookup(word) + offset) @ self.scale)


def saved_model() -> Any:
    """A SavedModel with a vocabulary inside, loaded."""
    directory = tempfile.mkdtemp()
    model = string_lookup()
    model.export(directory, verbose=False)
    return tf.saved_model.load(directory)


def keras2() -> Any:
    """Sentences and words in tf_keras."""
    k = tf_keras.layers
    text, word = tf_keras.Input((), dtype="string", name="text"), tf_keras.Input((1,), dtype="string", name="word")
    y = k.Embedding(6, 3)(k.TextVectorization(vocabulary=WORDS, output_sequence_length=3)(text))
    z = k.Embedding(6, 3)(k.StringLookup(vocabulary=WORDS)(word))
    return tf_keras.Model([text, word], k.Dense(2)(k.Flatten()(k.Concatenate(axis=1)([y, z]))))


WORD_PAIRS = texts(["red", "green"], ["black", ""], ["blue", "blue"])
TEXT = texts("red green red", "", "Blue, black red green red")
PICTURES = {"image": pictures(5)}


@functools.cache
def pictures_file() -> str:
    """PICTURES in a file."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory)
    np.savez(f"{directory}/pictures.npz", image=PICTURES["image"].astype(bytes))
    return f"{directory}/pictures.npz"


REAL = {"decoding": PICTURES, "words": {"x": texts("a red word", "red", "", "green")}}  # where nothing can be drawn
# For each name how the model is built, and inputs, values that no vocabulary has among them.
MODELS: Mapping[str, tuple[Callable[[], Any], tuple[np.ndarray, ...]]] = {
    "string_lookup": (string_lookup, (WORD_PAIRS,)),
    "string_one_hot": (functools.partial(string_lookup, output_mode="one_hot"), (WORD_PAIRS,)),
    "string_multi_hot": (functools.partial(string_lookup, output_mode="multi_hot"), (WORD_PAIRS,)),
    "string_oov": (functools.partial(string_lookup, num_oov_indices=3), (WORD_PAIRS,)),
    "string_and_number": (string_and_number, (texts(["red"], ["x"]), np.array([[0.5], [-1.0]], np.float32))),
    "integer_lookup": (integer_lookup, (np.array([[3, 2**40], [7, 2**62], [5, -5]]),)),
    "text_int": (functools.partial(text_vectorization, output_sequence_length=4), (TEXT,)),
    "text_multi_hot": (functools.partial(text_vectorization, output_mode="multi_hot"), (TEXT,)),
    "text_tf_idf": (
        functools.partial(text_vectorization, output_mode="tf_idf", idf_weights=[1.0, 0.5, 2.0]),
        (TEXT,),
    ),
    "text_ngrams": (functools.partial(text_vectorization, output_sequence_length=4, ngrams=2), (TEXT,)),
    "text_characters": (
        functools.partial(text_vectorization, output_sequence_length=4, split="character"),
        (TEXT,),
    ),
    "hashing": (hashing, (WORD_PAIRS,)),
    "hashed_crossing": (hashed_crossing, (WORD_PAIRS[:, :1], WORD_PAIRS[:, 1:])),
    "first_letters": (first_letters, (TEXT,)),
    "words": (_Words, (TEXT,)),
    "decoding": (decoding, (pictures(3),)),
    "mutable_table": (_Prices, (WORD_PAIRS[:, :1],)),
    "saved_model": (saved_model, (WORD_PAIRS,)),
    "keras2": (keras2, (TEXT, WORD_PAIRS[:, :1])),
}
