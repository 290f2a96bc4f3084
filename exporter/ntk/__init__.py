"""The kernel stage: how an NTK is computed, in JAX alone; nothing here imports TensorFlow."""
