"""TensorFlow without what it writes and imports besides, while it is imported."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow; its native logs show errors only, unless TF_CPP_MIN_LOG_LEVEL says otherwise.

    Without Keras, and what that imports, which takes 1.8 of 4.6 s here; `tf.keras` is there once it is asked for.
    Without JAX, which TensorFlow Lite's converter would import: 0.4 s. And without looking for garbage, of which
    modules make none: a fifth of the rest.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with silent_stderr(), _without(*_KERAS, "jax"), without_garbage_collection():
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """No collections of garbage meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# The last line of tensorflow/__init__.py imports one of them, to register what SavedModels of optimizers are made of.
_KERAS = ("keras.src.optimizers", "tf_keras.src.optimizers")


@contextlib.contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Importing one of them is an ImportError meanwhile, unless it is imported already."""
    blocked = dict.fromkeys(module for module in modules if module not in sys.modules)
    sys.modules.update(blocked)  # type: ignore[arg-type]  # None makes importing it an ImportError
    try:
        yield
    finally:
        for module in blocked:
            sys.modules.pop(module, None)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drops what is written to standard error meanwhile, by native code too.

    While it is being loaded TensorFlow writes about oneDNN and CUDA before it looks at TF_CPP_MIN_LOG_LEVEL (2.21).
    """
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
