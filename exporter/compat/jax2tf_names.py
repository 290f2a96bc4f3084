"""JAX functions as TensorFlow functions: experimental in JAX. Seen in JAX 0.7.1 to 0.10.2."""

from jax.experimental.jax2tf import convert

__all__ = ["convert"]
