"""What does not depend on a function's arguments, computed once instead of in each iteration of a loop over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from exporter.compat.jax_names import Jaxpr, JaxprEqn
from exporter.ntk.equations import bind, evaluate
from exporter.ntk.layerwise import uses

Array = Any


class _Later:
    """A value that is made in each iteration, an argument or by an equation."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Repeated:
    """A value that does not depend on the arguments, but is as cheap to make as to keep, and smaller before."""

    eqn: JaxprEqn
    inputs: list[Any]
    now: Any


def _now(v: Any) -> Any:
    return v.now if isinstance(v, _Repeated) else v


def independent_first(fn: Callable[..., Any], *specs: jax.ShapeDtypeStruct) -> Callable[..., Any]:
    """A function of the same arrays, those of `specs`, with all of `fn` that does not depend on them computed here.

    XLA moves less out of its loops: nothing that contains a loop, or that is larger than what it is made of.
    """
    closed, tree = jax.make_jaxpr(fn, return_shape=True)(*specs)
    steps: list[tuple[JaxprEqn, list[Any], list[_Later]]] = []

    def later(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[_Later]:
        made = [later(v.eqn, v.inputs)[0] if isinstance(v, _Repeated) else v for v in inputs]
        outputs = [_Later() for _ in eqn.outvars]
        steps.append((eqn, made, outputs))
        return outputs

    def run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        return evaluate(jaxpr, consts, args, step)

    def step(eqn: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
        if eqn.primitive.name in uses.CALLS:
            return run(*uses.called(eqn), inputs)
        if eqn.primitive.name == "optimization_barrier":
            return inputs  # else all of them are made in each iteration if one is
        if any(isinstance(v, _Later) for v in inputs):
            return later(eqn, inputs)
        inputs = [_now(v) for v in inputs]
        outputs = bind(eqn, inputs)
        if eqn.primitive.name == "broadcast_in_dim":
            return [_Repeated(eqn, inputs, value) for value in outputs]
        return outputs

    arguments = [_Later() for _ in closed.jaxpr.invars]
    results = run(closed.jaxpr, closed.consts, arguments)

    def rest(*args: Array) -> Any:
        values = dict(zip(arguments, args, strict=True))

        def read(v: Any) -> Any:
            return values[v] if isinstance(v, _Later) else _now(v)

        for eqn, inputs, outputs in steps:
            values.update(zip(outputs, bind(eqn, [read(v) for v in inputs]), strict=True))
        return jax.tree.unflatten(jax.tree.structure(tree), map(read, results))

    return rest
