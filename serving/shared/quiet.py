"""TensorFlow without what its native code writes to standard error while it is imported."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow; its native logs show errors only, unless TF_CPP_MIN_LOG_LEVEL says otherwise."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with silent_stderr():
        import tensorflow  # noqa: F401


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
