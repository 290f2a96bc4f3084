"""The functionalize stage: a TensorFlow model comes in, a pure JAX function of its variables and inputs goes out.

It traces the model in inference mode (`model_kinds`, `tracing`) and evaluates the graph with JAX, node by node
(`tf_ops`), without half precision (`tf_ops.half_precision`) unless that is to be kept. What has no JAX form and depends
on no trainable variable, vocabularies say, is split off (`splitting`) as a TensorFlow function in front of it (`front`,
with copies of its `tables`), whose shapes `examples` tell. It alone knows Keras and tf2jax.
"""

from exporter.functionalize.front import Front
from exporter.functionalize.functional_model import FunctionalModel, TensorSpec, functionalize

__all__ = ["Front", "FunctionalModel", "TensorSpec", "functionalize"]
