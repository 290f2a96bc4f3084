"""Runnable examples, on scikit-learn's handwritten digits; the tests run every one of them."""

import sys

BLOCKED = ("jax", "jaxlib", "keras", "tf_keras", "tf2jax", "neural_tangents", "exporter")


def block() -> None:
    """Makes importing what made a SavedModel an ImportError."""
    sys.modules.update(dict.fromkeys(BLOCKED))  # type: ignore[arg-type]  # None makes importing it an ImportError


def imported() -> str:
    """What of it is imported, in words."""
    return ", ".join(name for name in BLOCKED if sys.modules.get(name) is not None) or "nothing"
