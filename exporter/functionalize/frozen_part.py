"""What a model computes of its inputs by frozen variables alone: a backbone under a new head.

It is the same for all signatures and blocks of a kernel, has no derivatives, and is most of such a model. So it has
programs of its own, and the kernel is that of the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.functionalize.examples import Examples
from exporter.functionalize.splitting import Split, Splitting
from exporter.functionalize.tf_ops import Library
from exporter.functionalize.tracing import ModelVariable, TensorSpec, TracedModel

Array = Any

_NUMBERS = 500_000  # of variables, from which on compiling them again and again takes seconds
_GIVEN = 16 << 10  # bytes of an example that the rest may begin with, or as many as the model's own inputs have
_AT_ONCE = 3  # values on the way of about the largest's size
_BATCH = 13  # examples, no size that a value is likely to have otherwise


@dataclasses.dataclass(frozen=True)
class FrozenPart:
    """The first part of a model.

    Attributes:
      apply_fn: apply_fn(variables, inputs), what the rest begins with, of any number of examples of the model's inputs.
      variables: their values by path.
      bytes_of_example: that values on the way take.
      flops_of_example: floating point operations.
    """

    apply_fn: Any
    variables: Mapping[str, np.ndarray]
    bytes_of_example: int
    flops_of_example: float


def split_frozen_part(
    traced: TracedModel,
    library: Library,
    output: int,
    chosen: Collection[str],
    examples: Examples,
    value: Callable[[ModelVariable], np.ndarray],
) -> tuple[Split, FrozenPart] | None:
    """A model in two parts, or None if that is not worth while: the first is small, or what it gives is large.

    Args:
      traced: the model.
      library: what it calls.
      output: index of the output.
      chosen: paths of the variables that the kernel is over.
      examples: of the model's inputs.
      value: of a variable.
    """
    taken = [v for v in traced.captures if isinstance(v, ModelVariable) and v.path not in chosen]
    if sum(math.prod(v.shape) for v in taken) < _NUMBERS:
        return None
    split = Splitting(traced, library, output).split_frozen(chosen, examples)
    if split is None or _bytes(split.specs) > max(_GIVEN, _bytes(traced.inputs)):
        return None
    names = split.first.argument_names[len(traced.inputs) :]
    needed = {edge.name for node in split.first.nodes for edge in split.first.inputs(node)}
    captures = [v if name in needed else None for name, v in zip(names, traced.captures, strict=True)]
    variables = {v.path: value(v) for v in captures if isinstance(v, ModelVariable)}
    if sum(v.size for v in variables.values()) < _NUMBERS:
        return None

    def apply_fn(variables: Mapping[str, Array], inputs: Sequence[Array]) -> tuple[Array, ...]:
        values = [variables[c.path] if isinstance(c, ModelVariable) else c for c in captures]
        return split.first(*map(jnp.asarray, inputs), *values)

    x = [jax.ShapeDtypeStruct((_BATCH, *spec.shape[1:]), spec.dtype) for spec in traced.inputs]
    batch = jax.jit(apply_fn).trace(variables, x)
    values = [v.aval for eqn in batch.jaxpr.eqns for v in eqn.outvars if v.aval.shape[:1] == (_BATCH,)]
    largest = max((a.size * a.dtype.itemsize for a in values), default=1)
    flops = (batch.lower().cost_analysis() or {}).get("flops", 0.0)
    return split, FrozenPart(apply_fn, variables, max(1, _AT_ONCE * largest // _BATCH), flops / _BATCH)


def _bytes(specs: Sequence[TensorSpec]) -> int:
    return sum(math.prod(n or 1 for n in spec.shape[1:]) * np.dtype(spec.dtype).itemsize for spec in specs)
