"""Which reference examples are kept of features, and in which dtype."""

import numpy as np
import pytest
import zarr

from serving.answers import fit, reference
from serving.answers.errors import FitError

N, DIMENSIONS = 30, 8
RNG = np.random.default_rng(0)
LEVERAGES = RNG.uniform(size=N)


@pytest.fixture
def stored(tmp_path):
    array = zarr.create_array(str(tmp_path / "f.zarr"), shape=(N, DIMENSIONS), dtype="f4", chunks=(7, DIMENSIONS))
    array[:] = RNG.normal(size=(N, DIMENSIONS))
    return reference.Reference("features", None, None, None, array)


def kept(stored, keep, memory):
    rows, dtype = fit._kept(stored, LEVERAGES, keep, memory)
    return rows.tolist(), dtype


def largest(count):
    return sorted(np.argsort(-LEVERAGES)[:count].tolist())


def test_by_leverage_and_memory(stored, monkeypatch):
    """Half precision if that leaves more of them, and finds the same neighbours."""
    fits = 4 * DIMENSIONS * N
    assert kept(stored, None, fits) == (list(range(N)), "float32")
    assert kept(stored, 5, fits) == (largest(5), "float32")
    assert kept(stored, None, fits // 2) == (list(range(N)), "bfloat16")
    assert kept(stored, None, fits // 3) == (largest(20), "bfloat16")
    monkeypatch.setattr(fit, "_RECALL", 1.1)
    assert kept(stored, None, fits // 3) == (largest(10), "float32")


@pytest.mark.parametrize("keep", [0, N + 1])
def test_more_than_there_are(stored, keep):
    with pytest.raises(FitError, match=f"--keep from 1 to the {N} reference examples, received {keep}"):
        kept(stored, keep, 1 << 20)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_store(stored, dtype):
    rows = np.array([0, 6, 7, 8, 29])
    found = fit._rows(stored.features, rows, dtype)
    assert found.dtype.name == dtype
    np.testing.assert_allclose(
        found.astype(np.float32), stored.features[:][rows], rtol=0 if dtype == "float32" else 1e-2
    )


def test_recall_of_what_rounding_mixes_up(tmp_path):
    """Neighbours that differ by less than half precision tells are lost, and this is seen."""
    near = np.ones((N, DIMENSIONS)) + 1e-4 * RNG.normal(size=(N, DIMENSIONS))
    array = zarr.create_array(str(tmp_path / "f.zarr"), shape=near.shape, dtype="f4", chunks=(7, DIMENSIONS))
    array[:] = near
    assert fit._recall(array, np.arange(N)) < 0.9
