"""TensorFlow graphs as JAX functions: the graph interpreter, and the op converters that tf2jax lacks."""

# ruff: noqa: F401  (the modules of converters are imported to register them)
from exporter.tf_ops import (
    arrays,
    control_flow,
    convolutions,
    elementwise,
    images,
    linear_algebra,
    loops,
    normalization,
    pooling,
    tensor_lists,
)
from exporter.tf_ops.graph import GraphFunction, Library, layer_scope
from exporter.tf_ops.registry import is_random, is_supported

__all__ = ["GraphFunction", "Library", "is_random", "is_supported", "layer_scope"]
