"""Evaluating jaxprs and their equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from exporter.compat import jax_names
from exporter.compat.jax_names import Jaxpr, JaxprEqn, Literal


def bind(eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """The outputs of an equation, of the values of its inputs."""
    return jax_names.bind(eqn.primitive, eqn.params, values)


def evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    bind: Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]] = bind,
) -> list[Any]:
    """The outputs of a jaxpr, whose equations `bind` evaluates."""
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, bind(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def aval(variable: Any) -> Any:
    """The shape and dtype of an equation's input or output."""
    return variable.aval
