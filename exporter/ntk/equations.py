"""Evaluating single equations of a jaxpr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn


def bind(eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """The outputs of an equation, of the values of its inputs."""
    subfuns, params = eqn.primitive.get_bind_params(eqn.params)
    out = eqn.primitive.bind(*subfuns, *values, **params)
    return out if eqn.primitive.multiple_results else [out]


def aval(variable: Any) -> Any:
    """The shape and dtype of an equation's input or output."""
    return variable.aval
