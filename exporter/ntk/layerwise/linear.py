"""Which derivatives are the same for all examples: of values from which only linear equations lead to the outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax

from exporter.compat.jax_names import Jaxpr, JaxprEqn, Literal, Var
from exporter.ntk.equations import aval, bind
from exporter.ntk.layerwise import uses


def shared_derivatives(jaxpr: Jaxpr, derived: Collection[Var], data: Collection[Var]) -> set[Var]:
    """The variables of a jaxpr, and of those that it calls, whose derivatives do not depend on data.

    Args:
      jaxpr: of the model.
      derived: the variables that depend on a parameter and on data.
      data: all that depend on data.
    """
    found: dict[Var, bool] = {}
    _find(jaxpr, [True] * len(jaxpr.outvars), derived, data, found)
    return {v for v, shared in found.items() if shared}


def _find(
    jaxpr: Jaxpr, outputs: Sequence[bool], derived: Collection[Var], data: Collection[Var], found: dict[Var, bool]
) -> list[bool]:
    """Adds the variables of a jaxpr whose outputs have these derivatives shared; returns which of its inputs have."""
    shared: dict[Any, bool] = {}

    def use(variables: Sequence[Any], through: Sequence[bool]) -> None:
        for v, same in zip(variables, through, strict=True):
            if not isinstance(v, Literal):
                shared[v] = same and shared.get(v, True)

    use(jaxpr.outvars, outputs)
    for eqn in reversed(jaxpr.eqns):
        of_outputs = [shared.get(v, True) for v in eqn.outvars]  # what has no use has no derivative
        if eqn.primitive.name in uses.CALLS:
            through = _find(uses.called(eqn)[0], of_outputs, derived, data, found)
        else:
            through = [all(of_outputs) and _is_linear(eqn, derived, data)] * len(eqn.invars)
        use(eqn.invars, through)
    for v, same in shared.items():
        found[v] = same and found.get(v, True)
    return [shared.get(v, True) for v in jaxpr.invars]


def _is_linear(eqn: JaxprEqn, derived: Collection[Var], data: Collection[Var]) -> bool:
    """Whether the derivative of an equation, with respect to what depends on parameters, does not depend on data."""
    variables = [None if isinstance(v, Literal) else v for v in eqn.invars]
    specs = [jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in eqn.invars]
    moved = [
        k
        for k, (v, spec) in enumerate(zip(variables, specs, strict=True))
        if v in derived and jax.numpy.issubdtype(spec.dtype, jax.numpy.floating)
    ]
    if not moved:
        return True

    def tangents(values: list[Any], directions: list[Any]) -> list[Any]:
        def fn(*primals: Any) -> Sequence[Any]:
            return bind(eqn, [primals[moved.index(k)] if k in moved else value for k, value in enumerate(values)])

        _, found = jax.jvp(fn, [values[k] for k in moved], directions)
        return [tangent for tangent in found if tangent.dtype != jax.dtypes.float0]

    traced = jax.make_jaxpr(tangents)(specs, [specs[k] for k in moved]).jaxpr
    dependent = {given for given, v in zip(traced.invars[: len(specs)], variables, strict=True) if v in data}
    for step in traced.eqns:
        if any(v in dependent for v in step.invars if not isinstance(v, Literal)):
            dependent.update(step.outvars)
    return dependent.isdisjoint(v for v in traced.outvars if not isinstance(v, Literal))
