"""The functionalize stage: a TensorFlow model comes in, a pure JAX function of its variables and inputs goes out.

It traces the model in inference mode (`model_kinds`, `tracing`) and evaluates the graph with JAX, node by node
(`tf_ops`), without half precision (`tf_ops.half_precision`) unless that is to be kept. It alone knows Keras and tf2jax.
"""

from exporter.functionalize.functional_model import FunctionalModel, TensorSpec, functionalize

__all__ = ["FunctionalModel", "TensorSpec", "functionalize"]
