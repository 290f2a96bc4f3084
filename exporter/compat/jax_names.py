"""What is used of JAX that is not its public API, or that has moved. Seen in JAX 0.7.1 to 0.10.2.

It is kept apart from what needs TensorFlow, which `ntk` never imports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax

# The shape and dtype of whatever `jax.jit` takes; `jax.typeof` takes no ShapeDtypeStruct.
from jax.api_util import shaped_abstractify

# What is known of a value while JAX traces, and how to compute in the middle of that.
from jax.core import Tracer, eval_context

# What XLA is told of an operation: not to inline it.
from jax.experimental.xla_metadata import set_xla_metadata

# Functions as data: what the engine, float64 and the conversion of loops work on.
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var, jaxpr_as_fun

# StableHLO, read and written in an older version than JAX writes.
from jax.extend.mlir import deserialize_portable_artifact, serialize_portable_artifact

# What a primitive is given: how it is vectorized and lowered.
from jax.interpreters import batching, mlir

# Where MLIR lives while it is read.
from jax.interpreters.mlir import make_ir_context

# The part of a jaxpr that some of its outputs need, and which inputs that is of.
from jax.interpreters.partial_eval import dce_jaxpr, dce_jaxpr_consts

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "Tracer",
    "Var",
    "batching",
    "bind",
    "dce_jaxpr",
    "dce_jaxpr_consts",
    "enable_x64",
    "eval_context",
    "jaxpr_as_fun",
    "mlir",
    "set_xla_metadata",
    "shaped_abstractify",
    "stablehlo_in_version",
    "stablehlo_text",
]


def enable_x64(enabled: bool = True) -> AbstractContextManager[None]:
    """64-bit types, or not, within the context: `jax.enable_x64`, until JAX 0.8 in `jax.experimental` only."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax.experimental import enable_x64

    return enable_x64(enabled)


def bind(primitive: Primitive, params: Mapping[str, Any], values: Sequence[Any]) -> Sequence[Any]:
    """The outputs of a primitive with the parameters that it has in an equation.

    Until JAX 0.9 the functions among these come before the values, later within the parameters.
    """
    bound = primitive.get_bind_params(dict(params))
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    out = primitive.bind(*functions, *values, **bound)
    return out if primitive.multiple_results else [out]


def stablehlo_in_version(module: bytes, version: str) -> bytes:
    """A serialized StableHLO module as that version of StableHLO has it."""
    with make_ir_context():  # for JAX 0.10, which reads a module into it; earlier ones read it into text
        return serialize_portable_artifact(deserialize_portable_artifact(module), version)


def stablehlo_text(module: bytes) -> str:
    """A serialized StableHLO module as text."""
    with make_ir_context():
        return str(deserialize_portable_artifact(module))
