"""Sums over features by workers, against NumPy."""

import numpy as np
import pytest
import zarr

from serving.answers.errors import FitError
from serving.answers.sums import check_finite, eigenvectors, of_many

N, DIMENSIONS = 50, 6
RNG = np.random.default_rng(0)


@pytest.fixture
def store(tmp_path):
    """A function that writes features into a store."""

    def write(features):
        group = zarr.create_group(str(tmp_path / "f.zarr"))
        array = group.create_array("features", shape=features.shape, dtype="f4", chunks=(8, DIMENSIONS))
        array[:] = features
        return tmp_path / "f.zarr", array

    return write


def test_sums_are_those_of_numpy(store, cluster):
    """Also if some directions are missing; and parts that are there are not made again."""
    features = (RNG.normal(size=(N, DIMENSIONS - 1)) @ RNG.normal(size=(DIMENSIONS - 1, DIMENSIONS))).astype("f4")
    path, array = store(features)
    exact = features.astype(np.float64)
    said = []
    values, vectors, diagonal, coordinates = of_many(None, path, array, cluster, lambda *line: said.append(line))
    assert values.shape == (DIMENSIONS - 1,)
    np.testing.assert_allclose(vectors * values @ vectors.T, exact.T @ exact, atol=1e-9)
    np.testing.assert_allclose(diagonal, np.sum(exact**2, 1))
    np.testing.assert_allclose(coordinates, exact @ vectors, rtol=1e-5, atol=1e-5)
    parts = sorted(path.glob("products_*.npz"))
    assert len(parts) == 7
    assert said[0][0] == "sums"
    times = [part.stat().st_mtime_ns for part in parts]
    np.testing.assert_array_equal(of_many(None, path, array, cluster, lambda *_: None)[0], values)
    assert [part.stat().st_mtime_ns for part in parts] == times


def test_what_is_no_number_is_named(store, cluster):
    features = RNG.normal(size=(N, DIMENSIONS))
    features[33, 2] = np.inf
    path, array = store(features)
    with pytest.raises(FitError, match=r"not finite for example 33"):
        of_many(None, path, array, cluster, lambda *_: None)
    with pytest.raises(FitError, match=r"not finite for example 43"):
        check_finite(features, 10)


def test_eigenvectors_without_rounding():
    matrix = np.diag([1.0, 4.0, 1e-15])
    values, vectors = eigenvectors(matrix)
    np.testing.assert_allclose(values, [1, 4])
    np.testing.assert_allclose(np.abs(vectors), [[1, 0], [0, 1], [0, 0]])
