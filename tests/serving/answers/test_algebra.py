"""Closed forms against fits with each example really left out."""

import numpy as np
import pytest
from scipy.special import log_softmax

from serving.answers import algebra
from serving.answers.algebra import Coordinates
from serving.answers.targets import Task

N, OUTPUTS = 14, 3
NUMBERS, CLASSES = Task("numbers", "numbers", OUTPUTS), Task("classes", "logits", OUTPUTS)


def of_kernel(kernel):
    values, vectors = np.linalg.eigh(kernel)
    coordinates = vectors * np.sqrt(np.maximum(values, 0))
    return Coordinates(values, lambda: iter([(0, coordinates)]), len(kernel), float(np.trace(kernel)))


def of_features(features, step):
    """In parts, as from a store."""
    values, vectors = np.linalg.eigh(features.T @ features)

    def parts():
        return ((k, features[k : k + step] @ vectors) for k in range(0, len(features), step))

    return Coordinates(np.maximum(values, 0), parts, len(features), float(np.sum(features**2)))


def without(kernel, targets, ridge, i):
    """Mean and latent variance of example i by all others."""
    others = np.arange(len(kernel)) != i
    inverse = np.linalg.inv(kernel[np.ix_(others, others)] + ridge * np.eye(len(kernel) - 1))
    k = kernel[i, others]
    return k @ inverse @ targets[others], kernel[i, i] - k @ inverse @ k


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, 20)) / 4
    return features, rng.normal(size=(N, OUTPUTS)), rng.integers(0, OUTPUTS, N)


@pytest.mark.parametrize("ridge", [0.03, 2.0])
@pytest.mark.parametrize("by", ["kernel", "features"])
def test_left_out(problem, by, ridge):
    features, targets, _ = problem
    kernel = features @ features.T
    coordinates = of_kernel(kernel) if by == "kernel" else of_features(features, 5)
    left = algebra.left_out(coordinates, targets, ridge)
    expected = [without(kernel, targets, ridge, i) for i in range(N)]
    np.testing.assert_allclose(left.values, [mean for mean, _ in expected], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(left.latent, [variance for _, variance in expected], rtol=1e-8)
    np.testing.assert_allclose(left.weights, np.linalg.solve(kernel + ridge * np.eye(N), targets), rtol=1e-8)
    smoother = kernel @ np.linalg.inv(kernel + ridge * np.eye(N))
    np.testing.assert_allclose(left.leverages, np.diag(smoother), rtol=1e-8)


def test_ridge_of_numbers(problem):
    """The least squared error, and a scale with which errors are as large as they should be."""
    features, targets, y = problem
    kernel = features @ features.T
    selection = algebra.select(of_kernel(kernel), NUMBERS, targets, y, None)
    losses, scales = [], []
    for ridge in selection.ridges:
        means, variances = zip(*(without(kernel, targets, ridge, i) for i in range(N)), strict=True)
        squares = (targets - np.array(means)) ** 2
        losses.append(squares.mean())
        scales.append(np.mean(squares / (np.array(variances) + ridge)[:, None]))
    np.testing.assert_allclose(selection.losses, losses, rtol=1e-6)
    best = np.argmin(losses)
    assert selection.ridge == selection.ridges[best]
    assert 0 < best < len(losses) - 1
    np.testing.assert_allclose([selection.loss, selection.scale], [losses[best], scales[best]], rtol=1e-6)


def test_ridge_of_classes(problem):
    """The least negative log-likelihood over ridges and scales."""
    features, logits, y = problem
    kernel = features @ features.T
    logits = 6 * logits  # so sure that flattening helps
    selection = algebra.select(of_kernel(kernel), CLASSES, logits, y, None)

    def loss(ridge, scale):
        means, variances = zip(*(without(kernel, logits, ridge, i) for i in range(N)), strict=True)
        flat = np.array(means) / np.sqrt(1 + np.pi / 8 * scale * np.array(variances))[:, None]
        return -log_softmax(flat, 1)[np.arange(N), y].mean()

    np.testing.assert_allclose(selection.loss, loss(selection.ridge, selection.scale), rtol=1e-8)
    around = [loss(r, selection.scale * s) for r in selection.ridges[::4] for s in (0.03, 0.3, 1, 3, 30)]
    assert selection.loss <= min(around) + 1e-9
    assert selection.loss == selection.losses.min()


def test_a_given_ridge(problem):
    features, targets, y = problem
    selection = algebra.select(of_features(features, 4), NUMBERS, targets, y, 0.5)
    assert (selection.ridge, len(selection.ridges)) == (0.5, 1)


def test_network_that_is_kernel_regression(problem):
    """Its own leverages are found, whatever ridge it has: then residuals over them are those of leaving out."""
    features, targets, _ = problem
    kernel = features @ features.T
    ridge = algebra.RIDGES[20] * np.trace(kernel) / N
    smoother = kernel @ np.linalg.inv(kernel + ridge * np.eye(N))
    output = smoother @ targets
    rests = algebra.network_fit(of_kernel(kernel), targets, output)
    np.testing.assert_allclose(rests, 1 - np.diag(smoother), rtol=1e-8)
    expected = [targets[i] - without(kernel, targets, ridge, i)[0] for i in range(N)]
    np.testing.assert_allclose((targets - output) / rests[:, None], expected, rtol=1e-6)
