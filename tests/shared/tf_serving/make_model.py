"""Writes the small SavedModel that the answers in recorded.json were asked of: make_model.py BASE_DIR.

Two versions of it, with four signatures and no checks of their own, so that errors about shapes are XLA's.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.experimental import jax2tf

# The newest that TF Serving 2.20 reads.
CALLING_CONVENTION = 9


class Model(tf.Module):
    """A linear model f(x) = x w, and a kernel of it."""

    def __init__(self):
        self.w = tf.Variable(np.arange(12, dtype="f").reshape(4, 3) / 10, name="w")
        kernel = _lowered(lambda a, b, w: (a @ w) @ (b @ w).T, "(n1, 4)", "(n2, 4)")
        diagonal = _lowered(lambda a, w: jnp.sum((a @ w) ** 2, 1), "(n, 4)")
        forward = _lowered(lambda a, w: a @ w, "(n, 4)")
        self.ntk = _served(lambda x1, x2: {"ntk": kernel(x1, x2, self.w)}, "x1", "x2")
        self.ntk_diagonal = _served(lambda x: {"ntk": diagonal(x, self.w)}, "x")
        self.forward = _served(lambda x: {"output": forward(x, self.w)}, "x")


def _lowered(function, *shapes):
    return jax2tf.convert(function, with_gradient=False, polymorphic_shapes=[*shapes, None])


def _served(function, *names):
    signature = [tf.TensorSpec([None, 4], tf.float32, name=name) for name in names]
    return tf.function(function, jit_compile=True, autograph=False, input_signature=signature)


def save(base_dir: Path) -> None:
    """Writes BASE_DIR/1 and BASE_DIR/2."""
    name = "jax_export_calling_convention_version"
    before = getattr(jax.config, name)
    jax.config.update(name, CALLING_CONVENTION)
    try:
        model = Model()
        signatures = {
            "serving_default": model.ntk,
            "ntk": model.ntk,
            "ntk_diagonal": model.ntk_diagonal,
            "forward": model.forward,
        }
        for version in ("1", "2"):
            tf.saved_model.save(model, str(base_dir / version), signatures=signatures)
    finally:
        jax.config.update(name, before)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
