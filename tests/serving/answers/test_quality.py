"""What predictions are worth, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from serving.answers import quality

RNG = np.random.default_rng(0)
N = 200


@pytest.mark.parametrize("outputs", [1, 4])
def test_classes(outputs):
    given = RNG.dirichlet(np.ones(max(outputs, 2)), N)
    y = np.array([RNG.choice(len(p), p=p) for p in given])
    said = quality.of_classes(given if outputs > 1 else given[:, 1:], y)
    assert said["accuracy"] == pytest.approx(accuracy_score(y, given.argmax(1)))
    assert said["nll"] == pytest.approx(log_loss(y, given))
    confidences, error = given.max(1), 0.0
    for low in np.arange(quality.BINS) / quality.BINS:
        inside = (confidences >= low) & (confidences < low + 1 / quality.BINS)
        if inside.any():
            error += inside.mean() * abs((given.argmax(1) == y)[inside].mean() - confidences[inside].mean())
    assert said["ece"] == pytest.approx(error)
    of = quality.reliability(given if outputs > 1 else given[:, 1:], y)
    assert of.confidence == pytest.approx(confidences.mean())
    assert of.counts.sum() == N
    assert np.all((of.edges[:, 0] <= of.confidences) & (of.confidences <= of.edges[:, 1]))


def test_perfect_confidence():
    of = quality.reliability(np.eye(3), np.arange(3))
    assert (of.accuracy, of.error, of.nll) == (1, 0, 0)
    np.testing.assert_allclose(of.edges, [[14 / 15, 1]])


def test_numbers():
    variance = RNG.uniform(0.5, 2, 4000)
    y = RNG.normal(size=(4000, 2)) * np.sqrt(variance)[:, None]
    said = quality.of_numbers(np.zeros_like(y), y, variance)
    assert said["rmse"] == pytest.approx(np.sqrt(np.mean(y**2)))
    assert said["coverage"]["1"] == pytest.approx(0.683, abs=0.02)
    assert said["coverage"]["2"] == pytest.approx(0.954, abs=0.02)


def test_auroc():
    inside, outside = RNG.integers(0, 9, 50) / 9, RNG.integers(3, 12, 70) / 9  # with many that are equal
    labels = np.repeat([0, 1], [50, 70])
    assert quality.auroc(inside, outside) == pytest.approx(roc_auc_score(labels, np.concatenate([inside, outside])))
