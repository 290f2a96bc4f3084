"""Which task targets are of."""

import numpy as np
import pytest

from serving.answers.errors import FitError
from serving.answers.targets import Task, as_task, find_task

N = 6
LOGITS = np.linspace(-3, 3, 3 * N).reshape(N, 3)
PROBABILITIES = np.full((N, 3), 1 / 3)
ONE_HOT = np.eye(3)[[0, 1, 2, 0, 1, 2]]
CLASSES = np.array([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize(
    ("y", "output", "expected"),
    [
        (CLASSES, LOGITS, ("classes", "logits")),
        (CLASSES[:, None].astype(np.uint8), LOGITS, ("classes", "logits")),
        (CLASSES.astype(np.float32), PROBABILITIES, ("classes", "probabilities")),
        (ONE_HOT, LOGITS, ("classes", "logits")),
        (LOGITS + 1, LOGITS, ("numbers", "numbers")),
        (CLASSES % 2, LOGITS[:, :1], ("classes", "logits")),
        ((CLASSES % 2).astype(bool), PROBABILITIES[:, :1], ("classes", "probabilities")),
        (CLASSES, LOGITS[:, :1], ("numbers", "numbers")),
        (LOGITS[:, 0], LOGITS[:, :1], ("numbers", "numbers")),
    ],
)
def test_found(y, output, expected):
    task = find_task("d.npz", y, output)
    assert (task.kind, task.network) == expected
    assert task.outputs == output.shape[1]


@pytest.mark.parametrize(
    ("y", "kind", "network", "message"),
    [
        (CLASSES + 1, "auto", "auto", r"'y' of \(n, 3\) numbers, or classes 0 to 2, .* int64 \(n,\) from 1 to 3"),
        (CLASSES + 1, "classes", "auto", "classes 0 to 2, or one-hot rows of 3 in 'y'"),
        (LOGITS[:, :2], "auto", "auto", "'y' of"),
        (LOGITS, "numbers", "logits", "expected classes, for a network of logits"),
        (CLASSES, "auto", "numbers", "a network of logits or probabilities for classes"),
    ],
)
def test_refused(y, kind, network, message):
    with pytest.raises(FitError, match=message):
        find_task("d.npz", y, LOGITS, kind, network)


def test_targets_of_another_task():
    with pytest.raises(FitError, match="classes as in --data"):
        as_task("h.npz", LOGITS, Task("classes", "logits", 3))
    with pytest.raises(FitError, match="'y' of 3 numbers"):
        as_task("h.npz", CLASSES, Task("numbers", "numbers", 3))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("network", ["logits", "probabilities"])
def test_likelihoods_are_of_the_probabilities(outputs, network):
    """And logits of probabilities give these again."""
    task = Task("classes", network, outputs)
    output = LOGITS[:, :outputs]
    if network == "probabilities":
        output = Task("classes", "logits", outputs).probabilities(output)
    y = CLASSES if outputs > 1 else CLASSES % 2
    logits, variances = task.logits(output), np.linspace(0, 5, N)
    given = task.probabilities(logits, variances)
    of_two = given if outputs > 1 else np.concatenate([1 - given, given], 1)
    np.testing.assert_allclose(task.log_likelihoods(logits, variances, y), np.log(of_two[np.arange(N), y]))
    if network == "probabilities":
        np.testing.assert_allclose(task.probabilities(logits), output)
    assert task.residuals(output, y).shape == (N, outputs)
    np.testing.assert_allclose(
        task.residuals(output, y).sum(), 0 if outputs > 1 else y.sum() - task.probabilities(logits).sum(), atol=1e-9
    )
