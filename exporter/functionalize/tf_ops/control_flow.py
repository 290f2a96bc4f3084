"""Function calls and branches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from exporter.compat.jax_names import Tracer
from exporter.functionalize.tf_ops.graph import Library, is_known
from exporter.functionalize.tf_ops.registry import OpFunction, converts


@converts("PartitionedCall", "StatefulPartitionedCall")
def _call(node: Any, library: Library) -> OpFunction:
    return library[node.attr["f"].func.name]


@converts("If", "StatelessIf")
def _if(node: Any, library: Library) -> OpFunction:
    branches = [library[node.attr[key].func.name] for key in ("else_branch", "then_branch")]
    return lambda predicate, *operands: _branch(predicate != 0, branches, operands)


@converts("Case", "StatelessCase")
def _case(node: Any, library: Library) -> OpFunction:
    branches = [library[f.name] for f in node.attr["branches"].list.func]

    def case(index: Any, *operands: Any) -> tuple[Any, ...]:
        out_of_range = (index < 0) | (index >= len(branches))  # then TensorFlow takes the last branch
        return _branch(jnp.where(out_of_range, len(branches) - 1, index), branches, operands)

    return case


def _branch(index: Any, branches: list[Any], operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The results of branches[index](*operands); a known index leaves no trace of the other branches.

    Known operands stay known inside of the branches, and the branches' results are promoted to common types.
    """
    if is_known(index) or not isinstance(index, Tracer):
        return branches[int(index)](*operands)
    shapes = [jax.eval_shape(lambda branch=branch: branch(*operands)) for branch in branches]
    dtypes = [jnp.result_type(*(result.dtype for result in results)) for results in zip(*shapes, strict=True)]

    def closed(branch: Any) -> OpFunction:
        return lambda: tuple(jnp.asarray(y, dtype) for y, dtype in zip(branch(*operands), dtypes, strict=True))

    return jax.lax.switch(jnp.asarray(index, jnp.int32), [closed(branch) for branch in branches])
