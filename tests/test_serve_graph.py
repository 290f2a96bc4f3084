"""With programs in plain TF, of which every entry can be computed by hand."""

import functools
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from exporter import serve_graph

BLOCK = 3
SIZES = range(2 * BLOCK + 2)
WEIGHT = np.float64([[2.0, -1.0], [0.5, 1.0], [0.25, 3.0]])  # left and right play different roles


def examples(n, seed=0):
    """n examples of two inputs, one float and one integer."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, 3)), rng.integers(1, 5, (n, 2)).astype(np.int32)]


def features(x):
    return tf.cast(x[1], tf.float64) * (x[0] @ WEIGHT)


def plain(x1, x2):
    """(n1, n2): not symmetric in its arguments."""
    return tf.einsum("na,mb->nm", features(x1), 1 + 2 * features(x2))


def kernel(x1, x2):
    """(n1, n2): K(x2, x1) = K(x1, x2)ᵀ."""
    return features(x1) @ tf.transpose(features(x2))


def kept(x1, x2):
    """(n1, n2, 2, 2, 3): one output axis kept as a pair, one as a diagonal, as of outputs (n, 2, 3)."""
    y1, y2 = (features(x)[:, :, None] * tf.constant([1.0, 2.0, 3.0], tf.float64) for x in (x1, x2))
    return tf.einsum("nac,mbc->nmabc", y1, tf.sin(y2)) + tf.einsum("nac,mbc->nmabc", tf.sin(y1), y2)


def inverse(x1, x2):
    """(n1, n2): infinite or NaN for a padded example."""
    return tf.einsum("na,mb->nm", 1 / features(x1), tf.math.log(tf.abs(features(x2))))


TAIL = {plain: [], kernel: [], inverse: [], kept: [2, 2, 3]}
SWAP = {kernel: (1, 0), kept: (1, 0, 3, 2, 4)}


def sides(count, batch):
    return [[tf.TensorSpec([batch, 3], tf.float64), tf.TensorSpec([batch, 2], tf.int32)]] * count


def program(fn, tail, count, block=BLOCK):
    """`fn` for exactly `block` examples a side, as an XLA program has it."""
    run = tf.function(fn, autograph=False, input_signature=sides(count, block))
    return serve_graph.Program(run, block, tf.TensorSpec([None] * count + tail, tf.float64))


def served(fn, count):
    """In a graph with unknown numbers of examples, as in the SavedModel."""
    return tf.function(fn, autograph=False, input_signature=sides(count, None)).get_concrete_function()


@functools.cache
def pairwise(fn, block=BLOCK):
    block_program = program(fn, TAIL[fn], 2, block)
    return served(lambda x1, x2: serve_graph.pairwise(block_program, x1, x2), 2)


@functools.cache
def symmetric(fn, swap):
    block_program = program(fn, TAIL[fn], 2)
    return served(lambda x: serve_graph.symmetric(block_program, x, swap), 1)


@functools.cache
def rowwise(fn, tail):
    block_program = program(fn, list(tail), 1)
    return served(lambda x: serve_graph.rowwise(block_program, x), 1)


def tensors(x):
    return [tf.constant(a) for a in x]


@pytest.mark.parametrize("fn", [plain, kept])
def test_pairwise_of_any_numbers_of_examples(fn):
    for n1, n2 in itertools.product(SIZES, SIZES):
        x1, x2 = tensors(examples(n1)), tensors(examples(n2, seed=1))
        result = pairwise(fn)(x1, x2)
        assert result.shape == (n1, n2, *TAIL[fn])
        np.testing.assert_allclose(result, fn(x1, x2), rtol=1e-13, atol=1e-13, err_msg=f"{n1}, {n2}")


@pytest.mark.parametrize("fn", [kernel, kept])
def test_symmetric_equals_pairwise(fn):
    for n in SIZES:
        x = tensors(examples(n))
        result = symmetric(fn, SWAP[fn])(x)
        assert result.shape == (n, n, *TAIL[fn])
        np.testing.assert_allclose(result, pairwise(fn)(x, x), rtol=1e-13, atol=1e-13, err_msg=str(n))
        np.testing.assert_allclose(result, tf.transpose(result, SWAP[fn]), rtol=1e-13, atol=1e-13)


def test_symmetric_computes_the_blocks_above_the_diagonal_and_transposes_them():
    """Seen by a program that is not symmetric."""
    n = 3 * BLOCK - 1
    x = tensors(examples(n))
    result, all_pairs = symmetric(plain, (1, 0))(x), pairwise(plain)(x, x).numpy()
    blocks = np.arange(n) // BLOCK
    expected = np.where(blocks[:, None] <= blocks, all_pairs, all_pairs.T)
    np.testing.assert_allclose(result, expected, rtol=1e-13)
    assert np.max(np.abs(expected - all_pairs)) > 1


def test_symmetric_runs_one_program_per_pair_of_blocks():
    calls = []

    def run(x1, x2):
        (result,) = tf.py_function(lambda: calls.append(1) or [tf.zeros([BLOCK, BLOCK], tf.float64)], [], [tf.float64])
        return tf.ensure_shape(result, [BLOCK, BLOCK])

    counting = serve_graph.Program(run, BLOCK, tf.TensorSpec([None, None], tf.float64))
    served(lambda x: serve_graph.symmetric(counting, x, (1, 0)), 1)(tensors(examples(4 * BLOCK)))
    assert len(calls) == 4 * 5 // 2


@pytest.mark.parametrize("tail", [(), (2,), (2, 3)])
def test_rowwise_of_any_number_of_examples(tail):
    numbers = tf.reshape(tf.range(1, 1 + math.prod(tail), dtype=tf.float64), tail)

    def fn(x):
        return tf.tensordot(tf.reduce_sum(features(x), 1), numbers, axes=0)

    for n in SIZES:
        x = tensors(examples(n))
        result = rowwise(fn, tail)(x)
        assert result.shape == (n, *tail)
        np.testing.assert_allclose(result, fn(x), rtol=1e-13, err_msg=str(n))


@pytest.mark.parametrize("block", [1, 2, 7, 16])
def test_blocks_of_any_size(block):
    x1, x2 = tensors(examples(7)), tensors(examples(4, seed=1))
    np.testing.assert_allclose(pairwise(plain, block)(x1, x2), plain(x1, x2), rtol=1e-13)


@pytest.mark.parametrize("fn", [plain, inverse])
def test_results_do_not_depend_on_padding(fn):
    """Nor on the examples that share a block: bit for bit."""
    x1, x2 = examples(2 * BLOCK), examples(2 * BLOCK, seed=1)
    whole = pairwise(fn)(tensors(x1), tensors(x2)).numpy()
    assert np.all(np.isfinite(whole))
    for n1, n2 in itertools.product(range(1, 2 * BLOCK), repeat=2):
        part = pairwise(fn)(tensors(a[:n1] for a in x1), tensors(a[:n2] for a in x2))
        np.testing.assert_array_equal(part, whole[:n1, :n2])


def test_padding_that_is_not_finite_is_cut_off():
    for n in (1, BLOCK - 1, BLOCK + 1):
        x = tensors(examples(n))
        assert np.all(np.isfinite(pairwise(inverse)(x, x)))
        assert np.all(np.isfinite(rowwise(lambda x: 1 / features(x)[:, 0], ())(x)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_example_that_is_not_finite_does_not_reach_the_others(value):
    n, bad = 2 * BLOCK, 1
    x1, x2 = examples(n), examples(n, seed=1)
    finite = plain(tensors(x1), tensors(x2)).numpy()
    x1[0][bad, 0] = value
    result = pairwise(plain)(tensors(x1), tensors(x2)).numpy()
    assert not np.any(np.isfinite(result[bad]))
    np.testing.assert_allclose(np.delete(result, bad, 0), np.delete(finite, bad, 0), rtol=1e-13)
    result = symmetric(kernel, (1, 0))(tensors(x1)).numpy()
    others = np.arange(n) != bad
    np.testing.assert_allclose(
        result[np.ix_(others, others)], kernel(*[tensors(a[others] for a in x1)] * 2), rtol=1e-13
    )
    rows = rowwise(lambda x: tf.reduce_sum(features(x), 1), ())(tensors(x1)).numpy()
    assert np.array_equal(np.isfinite(rows), others)


@pytest.mark.parametrize("fn", [plain, kept])
def test_whole_of_any_numbers_of_examples(fn):
    """With a mean over the batch: the examples influence each other."""

    def coupled(x1, x2):
        return fn(x1, x2) - tf.reduce_mean(fn(x1, x2), [0, 1])

    result_spec = tf.TensorSpec([None, None, *TAIL[fn]], tf.float64)
    whole = served(lambda x1, x2: serve_graph.whole(coupled, result_spec, x1, x2), 2)
    for n1, n2 in itertools.product((0, 1, 2, 5), repeat=2):
        x1, x2 = tensors(examples(n1)), tensors(examples(n2, seed=1))
        result = whole(x1, x2)
        assert result.shape == (n1, n2, *TAIL[fn])
        if n1 and n2:
            np.testing.assert_allclose(result, coupled(x1, x2), rtol=1e-13, atol=1e-13)


def test_whole_of_one_side():
    result_spec = tf.TensorSpec([None, 2], tf.float64)
    whole = served(
        lambda x: serve_graph.whole(lambda x: features(x) - tf.reduce_mean(features(x), 0), result_spec, x), 1
    )
    assert whole(tensors(examples(0))).shape == (0, 2)
    x = tensors(examples(3))
    np.testing.assert_allclose(whole(x), features(x) - tf.reduce_mean(features(x), 0), rtol=1e-13)


def test_whole_runs_nothing_without_examples():
    """XLA's programs refuse zero rows."""

    def refuses(x1, x2):
        with tf.control_dependencies([tf.debugging.Assert(False, ["was run"])]):
            return tf.zeros([tf.shape(x1[0])[0], tf.shape(x2[0])[0]])

    whole = served(lambda x1, x2: serve_graph.whole(refuses, tf.TensorSpec([None, None]), x1, x2), 2)
    assert whole(tensors(examples(0)), tensors(examples(2))).shape == (0, 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="was run"):
        whole(tensors(examples(1)), tensors(examples(2)))


def test_sizes_are_known_but_for_the_examples():
    """So that clients see them in the signature."""
    assert pairwise(kept).structured_outputs.shape.as_list() == [None, None, 2, 2, 3]
    assert symmetric(kept, SWAP[kept]).structured_outputs.shape.as_list() == [None, None, 2, 2, 3]
