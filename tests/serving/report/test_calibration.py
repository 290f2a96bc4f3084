"""Accuracy and calibration, against scikit-learn and a loop."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from serving.report import calibration

LOGITS = np.random.default_rng(0).standard_normal((200, 4)) * 2
LABELS = np.where(np.random.default_rng(1).random(200) < 0.6, LOGITS.argmax(1), 1)


def test_reliability():
    probabilities = calibration.probabilities_of(LOGITS, "logits")
    one = calibration.reliability(probabilities, LABELS)
    assert one.accuracy == pytest.approx(accuracy_score(LABELS, probabilities.argmax(1)))
    assert one.loss == pytest.approx(log_loss(LABELS, probabilities))
    error, confidence = 0.0, probabilities.max(1)
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            right = (probabilities.argmax(1) == LABELS)[inside].mean()
            error += inside.mean() * abs(right - confidence[inside].mean())
    assert one.error == pytest.approx(error)
    assert one.confidence == pytest.approx(confidence.mean())
    assert one.counts.sum() == 200


def test_perfect_confidence():
    one = calibration.reliability(np.eye(3), np.arange(3))
    assert (one.accuracy, one.error, one.loss) == (1, 0, 0)
    assert one.edges.tolist() == [[14 / 15, 1]]


def test_outputs_are_told_by_their_values():
    probabilities = calibration.probabilities_of(LOGITS)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(calibration.probabilities_of(probabilities), probabilities)
    two = calibration.probabilities_of(np.array([[0.0], [3.0]]))
    np.testing.assert_allclose(two, [[0.5, 0.5], [1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3))]])
    np.testing.assert_allclose(calibration.probabilities_of(np.array([[0.25]])), [[0.75, 0.25]])


def test_coverage():
    rng = np.random.default_rng(0)
    targets, deviation = rng.standard_normal((20000, 2)) * 3, np.full(20000, 3.0)
    assert calibration.coverage(np.zeros_like(targets), deviation, targets, 1) == pytest.approx(0.683, abs=0.01)
    assert calibration.coverage(np.zeros_like(targets), deviation, targets, 2) == pytest.approx(0.954, abs=0.01)
