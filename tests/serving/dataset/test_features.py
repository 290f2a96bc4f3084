"""Features of whole data sets, by workers in this process."""

import contextlib
import io

import numpy as np
import pytest
import zarr

from serving.dataset import features
from serving.dataset.errors import DatasetError
from serving.dataset.export import find_export
from serving.dataset.features import write_features
from serving.dataset.prepared import prepare

N, STEP = 12, 5


@pytest.mark.parametrize("name", ["cnn", "many_outputs"])
def test_rows_are_the_signatures(name, exported, cluster, tmp_path, monkeypatch):
    """And only those that are missing are made again."""
    monkeypatch.setattr(features, "rows_at_once", lambda *_: STEP)
    export = exported(name)
    x = export.inputs(N)
    np.savez(tmp_path / "x.npz", x=x[0], y=np.arange(N))
    found = find_export(export.path.parent, "ntk_features")
    prepared = prepare(str(tmp_path / "x.npz"), found, lambda *_: None)
    output = tmp_path / "f.zarr"

    def write():
        with contextlib.redirect_stderr(io.StringIO()):
            return write_features(found, prepared, output, cluster, 2 << 30, lambda *_: None)

    assert (write().tasks, write().tasks) == (3, 0)
    group = zarr.open_group(str(output), mode="r")
    expected = np.asarray(export.loaded.ntk_features(export.argument(x)))
    np.testing.assert_allclose(group["features"][:], expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))
    assert group["y"][:].tolist() == group["id"][:].tolist() == list(range(N))

    whole = group["features"][:]
    next(path for path in (output / "features/c").rglob("*") if path.is_file()).unlink()
    assert write().tasks == 1
    np.testing.assert_array_equal(group["features"][:], whole)


def test_a_kernel_is_no_store_of_features(exported, cluster, tmp_path):
    found = find_export(exported("many_outputs").path.parent, "ntk_features")
    np.savez(tmp_path / "x.npz", x=exported("many_outputs").inputs(N)[0])
    prepared = prepare(str(tmp_path / "x.npz"), found, lambda *_: None)
    group = zarr.open_group(str(tmp_path / "k.zarr"), mode="w")
    group.attrs["ntk_dataset"] = {"format": 1, "kind": "kernel"}
    with pytest.raises(DatasetError, match="is of something else"):
        write_features(found, prepared, tmp_path / "k.zarr", cluster, 2 << 30, lambda *_: None)
