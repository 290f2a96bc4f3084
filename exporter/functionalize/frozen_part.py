"""What a model computes of its inputs by frozen variables alone: a backbone under a new head.

It is the same for all signatures and blocks of a kernel, has no derivatives, and is most of such a model. So it has
programs of its own, and the kernel is that of the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.functionalize.examples import Examples
from exporter.functionalize.splitting import Split, Splitting
from exporter.functionalize.tf_ops import Library, widened
from exporter.functionalize.tracing import ModelVariable, TensorSpec, TracedModel

Array = Any

_NUMBERS = 500_000  # of variables, from which on compiling them again and again takes seconds
_GIVEN = 16 << 10  # bytes of an example that the rest may begin with, or as many as the model's own inputs have
_MOST = 8  # examples at a time: more do not make a large model faster
_AT_WORK = 256 << 20  # bytes of them


@dataclasses.dataclass(frozen=True)
class FrozenPart:
    """The first part of a model.

    Attributes:
      apply_fn: apply_fn(variables, inputs), what the rest begins with, of any number of examples of the model's inputs.
      variables: their values by path.
      examples: how many of them may be computed at a time.
      flops: floating point operations for one.
    """

    apply_fn: Any
    variables: Mapping[str, np.ndarray]
    examples: int
    flops: float


def split_frozen_part(
    traced: TracedModel, library: Library, output: int, chosen: Collection[str], examples: Examples
) -> tuple[Split, FrozenPart] | None:
    """A model in two parts, or None if that is not worth while: the first is small, or what it gives is large.

    Args:
      traced: the model.
      library: what it calls.
      output: index of the output.
      chosen: paths of the variables that the kernel is over.
      examples: of the model's inputs.
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
    variables = {v.path: widened(v.variable.numpy()) for v in captures if isinstance(v, ModelVariable)}
    if sum(v.size for v in variables.values()) < _NUMBERS:
        return None

    def apply_fn(variables: Mapping[str, Array], inputs: Sequence[Array]) -> tuple[Array, ...]:
        values = [variables[c.path] if isinstance(c, ModelVariable) else c for c in captures]
        return split.first(*map(jnp.asarray, inputs), *values)

    x = [jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for spec in traced.inputs]
    example = jax.jit(apply_fn).trace(variables, x)
    largest = max((v.aval.size * v.aval.dtype.itemsize for e in example.jaxpr.eqns for v in e.outvars), default=1)
    most = max(1, min(_MOST, _AT_WORK // (3 * largest)))  # of such values there are a few at a time
    return split, FrozenPart(apply_fn, variables, most, (example.lower().cost_analysis() or {}).get("flops", 0.0))


def _bytes(specs: Sequence[TensorSpec]) -> int:
    return sum(math.prod(n or 1 for n in spec.shape[1:]) * np.dtype(spec.dtype).itemsize for spec in specs)
