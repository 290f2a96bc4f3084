"""What a page says of a kernel, against sums written out and scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from serving.report import numbers
from serving.shared import spectrum

N, CLASSES = 30, 3


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).standard_normal((N, 12))


@pytest.fixture(scope="module")
def kernel(features):
    return features @ features.T


@pytest.fixture(scope="module")
def indicator():
    return np.eye(CLASSES)[np.random.default_rng(1).integers(0, CLASSES, N)]


def test_cosine(features, kernel):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(numbers.cosine(kernel), unit @ unit.T, atol=1e-6)


def test_cosine_of_what_nothing_moves():
    cosines = numbers.cosine(np.array([[0.0, 0.0], [0.0, 4.0]]))
    np.testing.assert_array_equal(cosines, [[0, 0], [0, 1]])


def test_how_spread_eigenvalues_are(kernel):
    values = np.maximum(spectrum.eigenvalues(kernel), 0)
    assert numbers.participation(values) == pytest.approx(np.trace(kernel) ** 2 / np.sum(kernel**2), rel=1e-5)
    held, half = np.cumsum(values) / values.sum(), numbers.holding(values, 0.5)
    assert held[half - 1] >= 0.5 > held[half - 2]


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (2.5, 1)])
def test_how_spread_the_eigenvalues_of_constants_are(value, expected):
    values = np.maximum(spectrum.eigenvalues(np.full((4, 4), value)), 0)
    assert numbers.participation(values) == pytest.approx(expected)
    assert numbers.holding(values, 0.95) == expected


def test_alignment_with_shuffled_targets(indicator):
    shuffled = numbers.shuffled_alignments(spectrum.centred(indicator @ indicator.T), indicator, 5)
    assert np.all(np.abs(shuffled) < 0.5)


def test_means_between_classes(kernel, indicator):
    labels = indicator.argmax(1)
    means = numbers.means_between(kernel.astype(np.float32), indicator)
    for a in range(CLASSES):
        for b in range(CLASSES):
            pairs = [kernel[i, j] for i in range(N) for j in range(N) if (labels[i], labels[j]) == (a, b) and i != j]
            assert means[a, b] == pytest.approx(np.mean(pairs), rel=1e-4)


def test_a_class_of_one_has_no_pairs():
    means = numbers.means_between(np.eye(3, dtype=np.float32), np.array([[1.0, 0], [1, 0], [0, 1]]))
    assert np.isnan(means[1, 1])
    assert means[0, 0] == 0


@pytest.mark.parametrize("most", [1, 4, 11, N])
def test_blocks_are_of_one_group(kernel, most):
    groups = np.sort(np.random.default_rng(2).integers(0, 4, N))
    ranges = numbers.blocks(groups, most)
    assert [r.start for r in ranges] == [0, *(r.stop for r in ranges[:-1])]
    assert ranges[-1].stop == N
    assert all(len(set(groups[r])) == 1 for r in ranges)
    assert len(ranges) <= most + 4
    expected = [[kernel[a, b].mean() for b in ranges] for a in ranges]
    np.testing.assert_allclose(numbers.pooled(kernel, ranges), expected)


def test_typical_examples_come_first():
    cosines = np.array([[1, 0.1, 0.2], [0.1, 1, 0.9], [0.2, 0.9, 1]])
    assert numbers.typical_first(cosines, np.array([0, 0, 0])).tolist() == [2, 1, 0]
    assert numbers.typical_first(cosines, np.array([1, 0, 1])).tolist()[0] == 1


@pytest.mark.parametrize("count", [1, 4, N + 5])
def test_neighbours(features, kernel, count):
    near = numbers.neighbours(numbers.cosine(kernel), count)
    model = NearestNeighbors(n_neighbors=min(count, N - 1), metric="cosine").fit(features)
    np.testing.assert_array_equal(near, model.kneighbors(return_distance=False))


def test_one_example_has_no_neighbours():
    assert numbers.neighbours(np.ones((1, 1)), 3).shape == (1, 0)
