"""TensorFlow graphs as JAX functions: the graph interpreter, and the op converters that tf2jax lacks."""

# ruff: noqa: F401  (the modules of converters are imported to register them)
from exporter.functionalize.tf_ops import (
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
from exporter.functionalize.tf_ops.flattening import flattened
from exporter.functionalize.tf_ops.graph import Edge, GraphFunction, Library, Replacement
from exporter.functionalize.tf_ops.half_precision import at_least_float32, is_half, widened
from exporter.functionalize.tf_ops.inspection import (
    half_precision,
    layers_that_override_gradients,
    layers_that_read_what_they_wrote,
    operations_without_jax,
    random_operations,
    unsupported_operations,
)

__all__ = [
    "Edge",
    "GraphFunction",
    "Library",
    "Replacement",
    "at_least_float32",
    "flattened",
    "half_precision",
    "is_half",
    "layers_that_override_gradients",
    "layers_that_read_what_they_wrote",
    "operations_without_jax",
    "random_operations",
    "unsupported_operations",
    "widened",
]
