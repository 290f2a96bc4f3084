import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from exporter.graph.packing import FEW, Packing


def nest(batch):
    """Small arrays of two dtypes, and two that are most of the bytes."""
    rng = np.random.default_rng(0)
    shapes = [(), (3,), (2, 2), (0,), (5,), (1, 4)]
    small = {f"{k}": rng.standard_normal((*batch, *s), np.float32) for k, s in enumerate(shapes)}
    indices = tuple(rng.integers(9, size=(*batch, k), dtype=np.int32) for k in (1, 2))
    return {"small": small, "indices": indices, "large": [rng.standard_normal((*batch, 500), np.float32)] * 2}


@pytest.mark.parametrize("batch", [(), (1,), (4,)])
@pytest.mark.parametrize("xp", [jnp, tf])
def test_unpacking_gives_back_what_was_packed(xp, batch):
    values = nest(batch)
    packing = Packing(jax.eval_shape(lambda: nest(batch and (1,))), batch_axes=len(batch))
    arrays = jax.tree.map(xp.asarray if xp is jnp else tf.constant, values)
    packed = packing.pack(arrays, xp)
    assert [p.shape[len(batch) :] for p in packed] == [s.shape[len(batch) :] for s in packing.specs]
    assert sorted(np.dtype(s.dtype).name for s in packing.specs) == ["float32", "float32", "float32", "int32"]
    unpacked = packing.unpack([jnp.asarray(p) for p in packed])
    assert jax.tree.structure(unpacked) == jax.tree.structure(values)
    jax.tree.map(np.testing.assert_array_equal, unpacked, values)


def test_few_arrays_stay_as_they_are():
    values = [np.ones(k + 2) for k in range(FEW)]
    packing = Packing(values, batch_axes=0)
    assert all(a is b for a, b in zip(packing.pack(values, jnp), values, strict=True))


def test_axes_of_one_entry_are_left_out():
    values = [np.arange(12.0).reshape(2, 1, 6, 1), np.ones((2, 1))]
    packing = Packing(values, batch_axes=1)
    packed = packing.pack(values, jnp)
    assert [p.shape for p in packed] == [spec.shape for spec in packing.specs] == [(2, 6), (2,)]
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(packed), values)


def test_no_more_than_a_small_part_is_copied():
    values = [np.ones(10, np.float32)] * 100
    shapes = [spec.shape for spec in Packing(values, batch_axes=0).specs]
    assert shapes == [(120,), *[(10,)] * 88]
