"""What stands between a variable and its sites: Jacobians of variables from those of the parameters made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from exporter.compat.jax_names import Literal, Var
from exporter.ntk.equations import bind
from exporter.ntk.layerwise.analysis import Trace

Array = Any


class Prefixes:
    """The parameter at each site as a function of the variables, in which each site has only what it is made by."""

    def __init__(self, trace: Trace, specs: Sequence[jax.ShapeDtypeStruct]) -> None:
        """Takes a model's trace and its variables as shapes and dtypes, trainable ones first."""
        closed = jax.make_jaxpr(lambda *variables: trace.operands(variables))(*specs)
        self._jaxpr, self._consts = closed.jaxpr, closed.consts
        self._makers = {v: k for k, eqn in enumerate(closed.jaxpr.eqns) for v in eqn.outvars}

    def pulled_back(self, variables: Sequence[Array], site: int, leaves: Sequence[int], jacobian: Array) -> list[Array]:
        """Jacobians (n, R, *shape) of variables from that of the parameter at a site, which is made of these.

        Args:
          variables: all of them.
          site: its number.
          leaves: the numbers of those that the parameter is made of.
          jacobian: (n, R, *parameter).
        """

        def parameter(values: list[Array]) -> Array:
            replaced = list(variables)
            for k, value in zip(leaves, values, strict=True):
                replaced[k] = value
            return self._evaluate(replaced, self._jaxpr.outvars[site])

        made, vjp = jax.vjp(parameter, [variables[k] for k in leaves])
        (pulled,) = jax.vmap(jax.vmap(vjp))(jacobian.astype(made.dtype))
        return pulled

    def _evaluate(self, variables: Sequence[Array], output: Any) -> Array:
        needed: set[int] = set()
        pending = [output]
        while pending:
            k = self._makers.get(pending.pop())
            if k is not None and k not in needed:
                needed.add(k)
                pending += [v for v in self._jaxpr.eqns[k].invars if isinstance(v, Var)]
        env: dict[Any, Any] = dict(zip(self._jaxpr.constvars, self._consts, strict=True))
        env.update(zip(self._jaxpr.invars, variables, strict=True))

        def read(v: Any) -> Any:
            return v.val if isinstance(v, Literal) else env[v]

        for k in sorted(needed):
            eqn = self._jaxpr.eqns[k]
            env.update(zip(eqn.outvars, bind(eqn, [read(v) for v in eqn.invars]), strict=True))
        return read(output)
