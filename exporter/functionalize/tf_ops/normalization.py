"""Batch normalisation, and what tf_keras builds with it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from exporter.functionalize.tf_ops.graph import Library
from exporter.functionalize.tf_ops.half_precision import is_half, widened
from exporter.functionalize.tf_ops.registry import OpFunction, converts


@converts("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _fused_batch_norm(node: Any, library: Library) -> OpFunction:
    """With is_training the moments are x's own: so tf_keras' LayerNormalization does, with examples as channels.

    Of x in half precision, everything else is float32, and rounded is y.
    """
    axes = (0, 1, 2) if node.attr["data_format"].s == b"NHWC" else (0, 2, 3)
    epsilon, own_moments = node.attr["epsilon"].f, node.attr["is_training"].b

    def normalise(x: Any, scale: Any, offset: Any, mean: Any, variance: Any) -> tuple[Any, ...]:
        dtype, x = x.dtype, widened(x)
        if own_moments:
            mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
        scale_, offset_, mean_, variance_ = (jnp.expand_dims(v, axes) for v in (scale, offset, mean, variance))
        y = (x - mean_) * (scale_ * jax.lax.rsqrt(variance_ + epsilon)) + offset_
        return y.astype(dtype) if is_half(dtype) else y, mean, variance, mean, variance, variance

    return normalise
