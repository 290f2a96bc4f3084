"""Nests of many small tensors handed over as few: TensorFlow takes its time for each in every graph that has it."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FEW = 8  # so many tensors are left as they are
SHARE = 1 / 8  # of a nest's bytes at most is packed, the smallest tensors: what is packed is copied


class Packing:
    """Puts the small arrays of a nest side by side, those of a dtype in one array.

    A packed nest is a list of arrays. The arrays have the same `batch_axes` leading axes, and so have packed ones.

    Attributes:
      specs: the packed nest as shapes and dtypes.
    """

    def __init__(self, specs: Any, *, batch_axes: int) -> None:
        """Takes the nest as shapes and dtypes; the leading axes may have any sizes."""
        leaves, self._structure = jax.tree.flatten(specs)
        self._batch_axes = batch_axes
        self._shapes = [tuple(leaf.shape[batch_axes:]) for leaf in leaves]
        self._groups = _groups(
            [(np.dtype(leaf.dtype), math.prod(s)) for leaf, s in zip(leaves, self._shapes, strict=True)]
        )
        self.specs = jax.eval_shape(functools.partial(self.pack, xp=jnp), specs)

    def pack(self, nest: Any, xp: Any) -> list[Any]:
        """The nest packed, by `jax.numpy` or `tensorflow`, whose arrays it has."""
        leaves = jax.tree.leaves(nest)

        def alone(k: int) -> Any:
            shape = [size for size in self._shapes[k] if size != 1]  # XLA copies results that have such axes
            return leaves[k] if len(shape) == len(self._shapes[k]) else reshaped(k, shape)

        def reshaped(k: int, shape: Sequence[int]) -> Any:
            return xp.reshape(leaves[k], (*leaves[k].shape[: self._batch_axes], *shape))

        return [
            alone(group[0]) if len(group) == 1 else xp.concat([reshaped(k, [-1]) for k in group], axis=self._batch_axes)
            for group in self._groups
        ]

    def unpack(self, packed: list[Any]) -> Any:
        """The nest of JAX's arrays that was packed."""
        leaves: dict[int, Any] = {}
        for group, array in zip(self._groups, packed, strict=True):
            start, batch = 0, array.shape[: self._batch_axes]
            for k in group:
                size = math.prod(self._shapes[k])
                part = array if len(group) == 1 else array[..., start : start + size]
                leaves[k] = part.reshape(*batch, *self._shapes[k])
                start += size
        return jax.tree.unflatten(self._structure, [leaves[k] for k in range(len(leaves))])


def _groups(arrays: list[tuple[np.dtype, int]]) -> list[list[int]]:
    """The numbers of the arrays, of these dtypes and sizes, that are to be one array each."""
    if len(arrays) <= FEW:
        return [[k] for k in range(len(arrays))]
    left = SHARE * sum(dtype.itemsize * size for dtype, size in arrays)
    small: dict[np.dtype, list[int]] = collections.defaultdict(list)
    alone: list[int] = []
    for k in sorted(range(len(arrays)), key=lambda k: arrays[k][0].itemsize * arrays[k][1]):
        dtype, size = arrays[k]
        left -= dtype.itemsize * size
        (small[dtype] if left >= 0 else alone).append(k)
    return [*map(sorted, small.values()), *([k] for k in sorted(alone))]
