"""What is used of tf2jax: its converters of single operations, which are not public. Seen in tf2jax 0.3.8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# NumPy's functions for known values, JAX's for others.
from tf2jax._src import numpy_compat, ops

__all__ = ["convert", "is_supported", "numpy_compat"]


def is_supported(op_name: str) -> bool:
    """Whether there is a converter for a TensorFlow operation."""
    return not ops.get_unsupported_operations([op_name])


def convert(node: Any, library: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The operation of a NodeDef as a function of its inputs; those that it calls come from `library`, by name."""
    function = ops.get_parser(node.op)(node)
    if isinstance(function, ops._HigherOrderFunction):
        inner = {key: library[name] for key, name in function.inner_fn_names.items()}
        return lambda *args: function(*args, **inner)
    return function
