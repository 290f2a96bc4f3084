"""Traces estimated with random combinations of the outputs.

With z in {-1, 1}ᶜ at random, E[zᵀ J₁ J₂ᵀ z] = Σ_c <J₁[c], J₂[c]> (Hutchinson 1990,
https://doi.org/10.1080/03610919008812866). So the kernel averaged over C traced outputs f is that averaged over S
outputs g[s] = Σ_c z[s, c] f[c] / √C, up to an error that falls with √S. The same z for both sides and all examples
makes it a kernel too: symmetric and positive semidefinite. It costs S derivatives instead of C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from serving.shared.reference import random_bits


def signs(samples: int, count: int, seed: int) -> np.ndarray:
    """Random signs (samples, count), which any machine and version draws alike."""
    bits = random_bits(samples * count, seed) >> np.uint64(63)
    return (2.0 * bits - 1.0).astype(np.float32).reshape(samples, count)


def sampled_outputs(y: Any, traced: Sequence[int], samples: int, seed: int) -> Any:
    """Combinations of outputs, in place of the traced axes.

    Args:
      y: outputs (n, *S).
      traced: the traced axes; not the batch axis.
      samples: how many combinations.
      seed: of their signs.

    Returns:
      Of as many axes: the first of `traced` has one entry for each combination, the others of `traced` have one entry.

    Raises:
      ValueError: for the batch axis.
    """
    traced = [axis % y.ndim for axis in traced]
    if 0 in traced or not traced:
        raise ValueError(f"Expected traced axes other than the batch axis for trace_samples, received {traced}.")
    order = [*(axis for axis in range(y.ndim) if axis not in traced), *traced]
    count = math.prod(y.shape[axis] for axis in traced)
    kept = [y.shape[axis] for axis in order[: -len(traced)]]
    y = jnp.transpose(y, order).reshape(*kept, count)
    y = y @ jnp.asarray(signs(samples, count, seed).T / math.sqrt(count), y.dtype)
    y = y.reshape(*kept, samples, *[1] * (len(traced) - 1))
    return jnp.transpose(y, [order.index(axis) for axis in range(y.ndim)])
