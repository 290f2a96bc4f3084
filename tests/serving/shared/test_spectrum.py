"""The formulas, each against its definition written out."""

import numpy as np
import pytest

from serving.shared import spectrum

RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(12, 5))
KERNEL = FACTOR @ FACTOR.T


def test_eigenvalues_are_those_of_the_matrix_largest_first():
    values = spectrum.eigenvalues(KERNEL.astype(np.float32))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values[:5], np.linalg.svd(FACTOR, compute_uv=False) ** 2, rtol=1e-5)
    np.testing.assert_allclose(values[5:], 0, atol=1e-4)


def test_effective_dimension_is_the_trace_of_the_smoother():
    values = spectrum.eigenvalues(KERNEL)
    for ridge in (0.7, spectrum.RIDGE):
        expected = np.trace(KERNEL @ np.linalg.inv(KERNEL + ridge * np.trace(KERNEL) * np.eye(12)))
        assert spectrum.effective_dimension(values, ridge) == pytest.approx(expected, rel=1e-9)
    assert spectrum.effective_dimension(values) == spectrum.effective_dimension(values, 1e-3)
    assert spectrum.effective_dimension(0 * values) == 0


def test_effective_dimension_goes_from_the_rank_to_zero():
    values = spectrum.eigenvalues(KERNEL)
    assert spectrum.effective_dimension(values, 1e-9) == pytest.approx(5, abs=1e-4)
    assert spectrum.effective_dimension(values, 1e9) == pytest.approx(0, abs=1e-6)
    assert spectrum.effective_dimension([2.0, -1e-6], 1.0) == 0.5  # what rounding leaves below zero


@pytest.mark.parametrize("ridge", [0, -1, float("nan")])
def test_a_ridge_is_above_zero(ridge):
    with pytest.raises(ValueError, match=r"Expected a ridge above 0, received"):
        spectrum.effective_dimension([1.0], ridge)


@pytest.mark.parametrize("columns", [1, 3])
def test_alignment_is_the_cosine_of_the_centred_kernels(columns):
    targets = RNG.normal(size=(12, columns))
    centring = np.eye(12) - 1 / 12
    np.testing.assert_allclose(spectrum.centred(KERNEL), centring @ KERNEL @ centring, atol=1e-12)
    a, b = centring @ KERNEL @ centring, centring @ targets @ targets.T @ centring
    expected = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert spectrum.target_alignment(KERNEL, targets) == pytest.approx(expected, rel=1e-12)


def test_alignment_with_itself_and_with_what_it_does_not_see():
    targets = RNG.normal(size=(12, 3))
    assert spectrum.target_alignment(7 + 3 * targets @ targets.T, targets) == pytest.approx(1)  # constants do not count
    assert spectrum.target_alignment(np.ones((12, 12)), targets) != spectrum.target_alignment(KERNEL, np.ones(12))
    assert np.isnan(spectrum.target_alignment(KERNEL, np.ones(12)))


def test_relative_change():
    assert spectrum.relative_change(KERNEL, KERNEL) == 0
    assert spectrum.relative_change(3 * KERNEL, KERNEL) == pytest.approx(2)
    assert np.isnan(spectrum.relative_change(KERNEL, 0 * KERNEL))


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        ([5, 2, 5], [5, 2, 5]),
        ([[5], [2], [5]], [5, 2, 5]),
        (["b", "a", "b"], ["b", "a", "b"]),
        ([True, False, True], [1, 0, 1]),
        ([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [1, 0, 1]),
        ([0.5, 1.0, 0.0], None),
        ([[1.0], [0.0], [1.0]], None),
        ([[1, 1], [0, 1], [1, 0]], None),
        (np.zeros((3, 2, 2)), None),
    ],
)
def test_what_are_classes(y, classes):
    found = spectrum.classes_of(np.array(y))
    assert (found is None) if classes is None else (list(found) == classes)
    targets = spectrum.targets_of(np.array(y))
    expected = np.reshape(y, (3, -1)) if classes is None else np.eye(2)[[1, 0, 1]]
    np.testing.assert_array_equal(targets, expected)
