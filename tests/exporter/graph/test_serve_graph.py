"""With programs in plain TF, of which every entry can be computed by hand."""

import collections
import functools
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from exporter.graph import serve_graph

SIZES = (1, 3, 7)  # of programs
BLOCK = SIZES[-1]
EXAMPLES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 22)
WEIGHT = np.float64([[2.0, -1.0], [0.5, 1.0], [0.25, 3.0]])
TWO_INPUTS = [tf.TensorSpec([None, 3], tf.float64), tf.TensorSpec([None, 2], tf.int32)]


def examples(n, seed=0):
    """n examples of two inputs, one float and one integer."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, 3)), rng.integers(1, 5, (n, 2)).astype(np.int32)]


def tensors(x):
    return [tf.constant(a) for a in x]


def features(scale, x):
    """(n, 2), as a nest of two."""
    y = scale * tf.cast(x[1], tf.float64) * (x[0] @ WEIGHT)
    return {"y": [y[:, 0]], "z": (y[:, 1],)}


FEATURES = {"y": [tf.TensorSpec([None], tf.float64)], "z": (tf.TensorSpec([None], tf.float64),)}


def plain(f1, f2):
    """(n1, n2): K(x2, x1) = K(x1, x2)ᵀ."""
    return f1["y"][0][:, None] * f2["y"][0] + f1["z"][0][:, None] * f2["z"][0]


def kept(f1, f2):
    """(n1, n2, 2, 2, 3): one output axis kept as a pair, one as a diagonal, as of outputs (n, 2, 3)."""
    y1, y2 = (tf.stack([f["y"][0], f["z"][0]], 1)[:, :, None] * tf.constant([1.0, 2, 3], tf.float64) for f in (f1, f2))
    return tf.einsum("nac,mbc->nmabc", y1, tf.sin(y2)) + tf.einsum("nac,mbc->nmabc", tf.sin(y1), y2)


def inverse(f1, f2):
    """(n1, n2): infinite or NaN for a padded example."""
    return 1 / f1["y"][0][:, None] / f2["z"][0] + 1 / f1["z"][0][:, None] / f2["y"][0]


TAIL = {plain: [], inverse: [], kept: [2, 2, 3]}
SWAP = {plain: (1, 0), inverse: (1, 0), kept: (1, 0, 3, 2, 4)}


def by_hand(fn, x1, x2, scale=1.0):
    return fn(*(features(scale, tensors(x)) for x in (x1, x2))).numpy()


class Counted:
    """A function that takes blocks of known sizes only, as an XLA program does, and counts its calls by size."""

    def __init__(self, fn, sizes=SIZES):
        self.fn, self.sizes, self.calls = fn, sizes, {}

    def __call__(self, variables, *blocks):
        sizes = {a.shape[0] for a in tf.nest.flatten(blocks)}
        assert sizes <= set(self.sizes), sizes
        (size,) = sizes
        first = tf.nest.flatten(blocks)[0]
        with tf.control_dependencies([tf.py_function(functools.partial(self._count, size), [], [])]):
            blocks = tf.nest.map_structure(tf.identity, blocks)
        assert first.shape[0] == size
        return self.fn(variables, *blocks)

    def _count(self, size):
        self.calls[size] = self.calls.get(size, 0) + 1


class Served:
    """A kernel in graphs with unknown numbers of examples, as in the SavedModel."""

    def __init__(self, fn, resident=2, sizes=SIZES, joined=1):
        tile = joined * sizes[-1]
        self.features = Counted(features)
        self.contract = Counted(lambda _, f1, f2: fn(f1, f2), (*sizes, tile))
        self.kernel = serve_graph.Kernel(
            serve_graph.Rowwise(sizes, self.features, FEATURES),
            self.contract,
            sizes=sorted({*sizes, tile}),
            resident=resident,
            result=tf.TensorSpec([None, None, *TAIL[fn]], tf.float64),
            swap=SWAP[fn],
        )
        scale = tf.TensorSpec([], tf.float64)
        self._pairwise = tf.function(self.kernel.pairwise, [scale, TWO_INPUTS, TWO_INPUTS], autograph=False)
        self._symmetric = tf.function(self.kernel.symmetric, [scale, TWO_INPUTS], autograph=False)

    def pairwise(self, x1, x2, scale=1.0):
        self._forget()
        return self._pairwise(scale, tensors(x1), tensors(x2)).numpy()

    def symmetric(self, x, scale=1.0):
        self._forget()
        return self._symmetric(scale, tensors(x)).numpy()

    def _forget(self):
        self.features.calls.clear()
        self.contract.calls.clear()

    @property
    def examples_computed(self):
        return sum(size * count for size, count in self.features.calls.items())


@functools.cache
def served(fn, resident=2, joined=1):
    return Served(fn, resident, joined=joined)


@pytest.mark.parametrize("fn", [plain, kept])
def test_pairwise_of_any_numbers_of_examples(fn):
    for n1, n2 in itertools.product((0, 1, 3, 4, 7, 13, 22), repeat=2):
        x1, x2 = examples(n1), examples(n2, seed=1)
        result = served(fn).pairwise(x1, x2)
        assert result.shape == (n1, n2, *TAIL[fn])
        np.testing.assert_allclose(result, by_hand(fn, x1, x2), rtol=1e-13, atol=1e-13, err_msg=f"{n1}, {n2}")


@pytest.mark.parametrize(("fn", "resident"), [(plain, 1), (plain, 2), (plain, 100), (kept, 2)])
def test_symmetric_equals_pairwise(fn, resident):
    for n in EXAMPLES:
        x = examples(n)
        result = served(fn, resident).symmetric(x)
        np.testing.assert_allclose(result, by_hand(fn, x, x), rtol=1e-13, atol=1e-13, err_msg=str(n))
        np.testing.assert_allclose(result, np.transpose(result, SWAP[fn]), rtol=1e-13, atol=1e-13)


def test_variables_reach_every_program():
    x1, x2 = examples(10), examples(5, seed=1)
    np.testing.assert_allclose(served(plain).pairwise(x1, x2, 3.0), by_hand(plain, x1, x2, 3.0), rtol=1e-13)
    np.testing.assert_allclose(served(plain).symmetric(x1, 3.0), by_hand(plain, x1, x1, 3.0), rtol=1e-13)


# How often the programs run


@pytest.mark.parametrize(("n1", "n2"), [(14, 70), (70, 14), (14, 14), (7, 700)])
def test_features_are_computed_once_if_those_of_one_side_fit(n1, n2):
    kernel = served(plain)
    kernel.pairwise(examples(n1), examples(n2))
    assert kernel.features.calls == {BLOCK: (n1 + n2) // BLOCK}
    assert kernel.contract.calls == {BLOCK: n1 * n2 // BLOCK**2}


def test_features_of_one_side_are_repeated_if_neither_fits():
    kernel = served(plain)
    kernel.pairwise(examples(6 * BLOCK), examples(5 * BLOCK))  # the five are kept, two at a time
    assert kernel.features.calls == {BLOCK: 5 + 3 * 6}


def test_symmetric_requests_do_half_the_work():
    kernel = served(plain, 100)
    kernel.symmetric(examples(6 * BLOCK))
    assert kernel.features.calls == {BLOCK: 6}
    assert kernel.contract.calls == {BLOCK: 6 * 7 // 2}
    kernel = served(plain)
    kernel.symmetric(examples(6 * BLOCK))
    assert kernel.features.calls == {BLOCK: 6 + 4 + 2}
    assert kernel.contract.calls == {BLOCK: 6 * 7 // 2}


@pytest.mark.parametrize(
    ("n", "most"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 7), (8, 8), (9, 9), (10, 10), (13, 14)]
)
def test_little_is_computed_for_padding(n, most):
    kernel = served(plain)
    kernel.symmetric(examples(n))
    assert n <= kernel.examples_computed <= most


def test_a_small_request_takes_the_smallest_contraction():
    for n, size in ((1, 1), (2, 3), (3, 3), (4, 7), (7, 7)):
        kernel = served(plain)
        kernel.pairwise(examples(n), examples(1))
        assert kernel.contract.calls == {size: 1}


def test_one_size_of_programs():
    kernel = Served(plain, sizes=(3,))
    for n in (0, 1, 3, 4, 10):
        np.testing.assert_allclose(
            kernel.pairwise(examples(n), examples(4)), by_hand(plain, examples(n), examples(4)), rtol=1e-13
        )


# Tiles of several blocks


@pytest.mark.parametrize(("fn", "resident"), [(plain, 2), (kept, 1)])
def test_tiles_of_several_blocks(fn, resident):
    kernel = served(fn, resident, joined=3)
    numbers = [*EXAMPLES, 3 * BLOCK, 3 * BLOCK + 1, 50]
    for n1, n2 in zip(numbers, reversed(numbers), strict=True):
        x1, x2 = examples(n1), examples(n2, seed=1)
        result = kernel.pairwise(x1, x2)
        np.testing.assert_allclose(result, by_hand(fn, x1, x2), rtol=1e-13, atol=1e-13, err_msg=f"{n1}, {n2}")
        result = kernel.symmetric(x1)
        np.testing.assert_allclose(result, by_hand(fn, x1, x1), rtol=1e-13, atol=1e-13, err_msg=str(n1))


def test_more_than_a_block_is_contracted_as_a_tile():
    kernel = served(plain, joined=3)
    tile = 3 * BLOCK
    kernel.pairwise(examples(BLOCK + 1), examples(1))
    assert kernel.features.calls == {BLOCK: 1, 1: 2}  # and none of the tile's blocks that are empty
    assert kernel.contract.calls == {tile: 1}
    kernel.pairwise(examples(2 * tile), examples(tile + BLOCK))
    assert kernel.features.calls == {BLOCK: 6 + 4}
    assert kernel.contract.calls == {tile: 4}
    kernel.symmetric(examples(3 * tile))  # two of the tiles are kept, and the third made again
    assert kernel.features.calls == {BLOCK: 9 + 3}
    assert kernel.contract.calls == {tile: 6}


# Values of each example alone


@pytest.mark.parametrize("tail", [(), (2,), (2, 3)])
def test_rowwise_of_any_number_of_examples(tail):
    numbers = tf.reshape(tf.range(1, 1 + math.prod(tail), dtype=tf.float64), tail)

    def fn(scale, x):
        return tf.tensordot(features(scale, x)["y"][0], numbers, axes=0)

    run = serve_graph.Rowwise(SIZES, fn, tf.TensorSpec([None, *tail], tf.float64))
    run = tf.function(run.__call__, [tf.TensorSpec([], tf.float64), TWO_INPUTS], autograph=False)
    assert run.get_concrete_function().structured_outputs.shape.as_list() == [None, *tail]
    for n in EXAMPLES:
        x = tensors(examples(n))
        result = run(2.0, x)
        assert result.shape == (n, *tail)
        np.testing.assert_allclose(result, fn(2.0, x), rtol=1e-13, err_msg=str(n))


@pytest.mark.parametrize(
    ("overhead", "expected"),
    [
        (0.0, {0: (0, 0), 12: (12, 0), 13: (0, 1), 28: (12, 1), 29: (0, 2)}),
        (7.0, {0: (0, 0), 2: (2, 0), 3: (0, 1), 18: (2, 1), 19: (0, 2)}),
    ],
)
def test_blocks_are_padded_where_that_is_cheaper(overhead, expected):
    """Of sizes 1 and 16: a program takes as long as `overhead` examples of its work, so that is 1 + 7 to 16 + 7."""
    calls = collections.Counter()

    def fn(scale, x):
        tf.py_function(lambda: calls.update([x[0].shape[0]]), [], [])
        return scale * x[0]

    run = serve_graph.Rowwise((1, 16), fn, tf.TensorSpec([None], tf.float64), overhead=overhead)
    specs = [tf.TensorSpec([], tf.float64), [tf.TensorSpec([None], tf.float64)]]
    run = tf.function(run.__call__, specs, autograph=False)
    for n, (alone, blocks) in expected.items():
        calls.clear()
        np.testing.assert_array_equal(run(1.0, [tf.range(n, dtype=tf.float64)]), np.arange(n))
        assert (calls[1], calls[16]) == (alone, blocks), n


# Padding, and examples that are not finite


@pytest.mark.parametrize("fn", [plain, inverse])
def test_results_do_not_depend_on_padding(fn):
    """Nor on the examples that share a block: bit for bit."""
    x1, x2 = examples(2 * BLOCK), examples(2 * BLOCK, seed=1)
    whole = served(fn).pairwise(x1, x2)
    assert np.all(np.isfinite(whole))
    for n1, n2 in itertools.product(range(1, 2 * BLOCK, 2), repeat=2):
        part = served(fn).pairwise([a[:n1] for a in x1], [a[:n2] for a in x2])
        np.testing.assert_array_equal(part, whole[:n1, :n2])


def test_padding_that_is_not_finite_is_cut_off():
    for n in EXAMPLES:
        assert np.all(np.isfinite(served(inverse).symmetric(examples(n))))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [2, BLOCK, 2 * BLOCK + 3])
def test_an_example_that_is_not_finite_does_not_reach_the_others(value, n):
    bad = 1
    x1, x2 = examples(n), examples(n, seed=1)
    finite, finite_symmetric = by_hand(plain, x1, x2), by_hand(plain, x1, x1)
    x1[0][bad, 0] = value
    others = np.arange(n) != bad
    result = served(plain).pairwise(x1, x2)
    assert not np.any(np.isfinite(result[bad]))
    np.testing.assert_allclose(result[others], finite[others], rtol=1e-13)
    result = served(plain).symmetric(x1)
    np.testing.assert_allclose(result[np.ix_(others, others)], finite_symmetric[np.ix_(others, others)], rtol=1e-13)


# Models whose examples influence each other


@pytest.mark.parametrize("tail", [[], [2, 2, 3]])
def test_whole_of_any_numbers_of_examples(tail):
    """With a mean over the batch."""

    def coupled(x1, x2):
        y = tf.tensordot(x1[0][:, :1] @ tf.transpose(x2[0][:, :1]), tf.ones(tail, tf.float64), axes=0)
        return y - tf.reduce_mean(y, [0, 1])

    result_spec = tf.TensorSpec([None, None, *tail], tf.float64)
    whole = tf.function(
        lambda x1, x2: serve_graph.whole(coupled, result_spec, x1, x2), [TWO_INPUTS, TWO_INPUTS], autograph=False
    )
    for n1, n2 in itertools.product((0, 1, 2, 5), repeat=2):
        x1, x2 = tensors(examples(n1)), tensors(examples(n2, seed=1))
        result = whole(x1, x2)
        assert result.shape == (n1, n2, *tail)
        if n1 and n2:
            np.testing.assert_allclose(result, coupled(x1, x2), rtol=1e-13, atol=1e-13)


def test_whole_of_one_side():
    def centered(x):
        return x[0] - tf.reduce_mean(x[0], 0)

    result_spec = tf.TensorSpec([None, 3], tf.float64)
    whole = tf.function(lambda x: serve_graph.whole(centered, result_spec, x), [TWO_INPUTS], autograph=False)
    assert whole(tensors(examples(0))).shape == (0, 3)
    x = tensors(examples(3))
    np.testing.assert_allclose(whole(x), centered(x), rtol=1e-13)


def test_whole_runs_nothing_without_examples():
    """XLA's programs refuse zero rows."""

    def refuses(x1, x2):
        with tf.control_dependencies([tf.debugging.Assert(False, ["was run"])]):
            return tf.zeros([tf.shape(x1[0])[0], tf.shape(x2[0])[0]])

    whole = tf.function(
        lambda x1, x2: serve_graph.whole(refuses, tf.TensorSpec([None, None]), x1, x2),
        [TWO_INPUTS, TWO_INPUTS],
        autograph=False,
    )
    assert whole(tensors(examples(0)), tensors(examples(2))).shape == (0, 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="was run"):
        whole(tensors(examples(1)), tensors(examples(2)))


def test_sizes_are_known_but_for_the_examples():
    """So that clients see them in the signature."""
    for fn in ("_pairwise", "_symmetric"):
        shape = getattr(served(kept), fn).get_concrete_function().structured_outputs.shape
        assert shape.as_list() == [None, None, 2, 2, 3]


# Passes


def _in_passes(resident, passes, larger=None, sizes=SIZES):
    """A kernel that is a sum of features scaled by (number of the pass + 1)."""

    def run(variables, x):
        variables, number = variables
        return features(variables * (1.0 + tf.cast(number, tf.float64)), x)

    counted = Counted(run)
    kernel = serve_graph.Kernel(
        serve_graph.Rowwise(sizes, counted, FEATURES),
        lambda _, f1, f2: plain(f1, f2),
        sizes=sizes,
        resident=resident,
        result=tf.TensorSpec([None, None], tf.float64),
        swap=(1, 0),
        passes=passes,
        larger=larger,
    )
    return kernel, counted


def _graphs(kernel):
    """pairwise and symmetric with unknown numbers of examples."""
    one = tf.TensorSpec([], tf.float64)
    pairwise = tf.function(kernel.pairwise, [one, TWO_INPUTS, TWO_INPUTS], autograph=False)
    symmetric = tf.function(kernel.symmetric, [one, TWO_INPUTS], autograph=False)
    return (
        lambda x1, x2: pairwise(1.0, tensors(x1), tensors(x2)).numpy(),
        lambda x: symmetric(1.0, tensors(x)).numpy(),
    )


def test_kernel_is_the_sum_over_passes():
    pairwise, symmetric = _graphs(_in_passes(1, 3)[0])
    for n in EXAMPLES:
        x1, x2 = examples(n), examples(n + 1, seed=1)
        np.testing.assert_allclose(pairwise(x1, x2), (1 + 4 + 9) * by_hand(plain, x1, x2), rtol=1e-12)
        np.testing.assert_allclose(symmetric(x1), (1 + 4 + 9) * by_hand(plain, x1, x1), rtol=1e-12)


def test_requests_of_which_no_side_nearly_fits_go_to_the_larger_kernel():
    larger, counted = _in_passes(100, 2, sizes=(BLOCK,))
    kernel = serve_graph.Kernel(
        serve_graph.Rowwise(SIZES, features, FEATURES),
        lambda _, f1, f2: plain(f1, f2),
        sizes=SIZES,
        resident=1,
        result=tf.TensorSpec([None, None], tf.float64),
        swap=(1, 0),
        larger=larger,
        most=3 * BLOCK,
    )
    pairwise, symmetric = _graphs(kernel)
    for n1, n2, is_larger in [
        (3 * BLOCK, 5 * BLOCK, False),
        (5 * BLOCK, 3 * BLOCK, False),
        (4 * BLOCK, 5 * BLOCK, True),
        (0, 3, False),
        (0, 0, True),
    ]:
        counted.calls.clear()
        x1, x2 = examples(n1), examples(n2)
        result = pairwise(x1, x2)
        np.testing.assert_allclose(result, (5 if is_larger else 1) * by_hand(plain, x1, x2), rtol=1e-12)
        passes = 2 if n1 else 1  # that reach all programs
        assert counted.calls == ({BLOCK: passes * max(2, (n1 + n2) // BLOCK)} if is_larger else {})
    for n, is_larger in [(3 * BLOCK, False), (4 * BLOCK, True), (0, True)]:
        counted.calls.clear()
        x = examples(n)
        np.testing.assert_allclose(symmetric(x), (5 if is_larger else 1) * by_hand(plain, x, x), rtol=1e-12)
        passes = 2 if n else 1
        assert counted.calls == ({BLOCK: passes * max(1, n // BLOCK)} if is_larger else {})
