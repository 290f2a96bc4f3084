"""By what each value of a jaxpr is used, and so what its derivative is made of."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from exporter.compat.jax_names import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from exporter.ntk.equations import aval

CALLS = ("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
REORDERING = ("reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p", "convert_element_type")
_SUMS = ("add", "add_any", "sub")
_SCALING = (*_SUMS, "mul", "div", "neg")


def called(eqn: JaxprEqn) -> tuple[Jaxpr, list[Any]]:
    """The jaxpr and the constants of an equation among CALLS."""
    inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
    return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, [])


def kept_derivatives(jaxpr: Jaxpr, derived: Collection[Var]) -> set[Var]:
    """The variables of a jaxpr, and of those inside it, whose derivatives are in memory whatever their uses compute.

    These are derivatives that a matrix product gives, or a scan; those passed on by a sum that others meet in, where
    they are kept (see `Lowering.materialized`); and such ones reordered or scaled.

    Args:
      jaxpr: of the model.
      derived: the variables that depend on a parameter.
    """
    found: dict[Var, bool] = {}
    _find(jaxpr, [True] * len(jaxpr.outvars), derived, found)
    return {v for v, kept in found.items() if kept}


def _find(jaxpr: Jaxpr, outputs: list[bool], derived: Collection[Var], found: dict[Var, bool]) -> list[bool]:
    """Adds the variables of a jaxpr, of whose outputs the derivatives are kept or not; returns which of its inputs'."""
    uses: dict[Var, list[bool]] = {}  # for each use of a variable, whether it leaves its derivative in memory

    def kept(v: Any) -> bool:
        return uses.get(v) == [True]

    def use(variables: list[Any], leave: list[bool]) -> None:
        for v, left in zip(variables, leave, strict=True):
            if not isinstance(v, Literal):
                uses.setdefault(v, []).append(left)

    use(jaxpr.outvars, outputs)
    for eqn in reversed(jaxpr.eqns):
        name, inputs = eqn.primitive.name, [v for v in eqn.invars if not isinstance(v, Literal) and v in derived]
        if name in CALLS:
            leave = _find(called(eqn)[0], [kept(v) for v in eqn.outvars], derived, found)
        elif name == "scan":
            _all(eqn.params["jaxpr"].jaxpr, found)
            leave = [True] * len(eqn.invars)
        else:
            out = eqn.outvars[0]
            same_size = all(aval(v).size == aval(out).size for v in inputs)
            passed_on = name in REORDERING or (name in _SCALING and len(inputs) == 1 and same_size)
            meeting = name in _SUMS and len(inputs) > 1 and same_size
            leave = [name == "dot_general" or meeting or (passed_on and kept(out))] * len(eqn.invars)
        use(eqn.invars, leave)
    for v in uses:
        found[v] = kept(v) and found.get(v, True)
    return [kept(v) for v in jaxpr.invars]


def _all(jaxpr: Jaxpr, found: dict[Var, bool]) -> None:
    for v in (v for eqn in jaxpr.eqns for v in eqn.outvars):
        found.setdefault(v, True)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in (*CALLS, "scan"):
            _all(called(eqn)[0], found)


def only_scaled(jaxpr: Jaxpr) -> set[Var]:
    """Variables of a jaxpr, and of those inside it, with one use, a multiplication: their derivatives are products."""
    found = set()
    uses = counts(jaxpr)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in (*CALLS, "scan"):
            found |= only_scaled(called(eqn)[0])
        elif eqn.primitive.name == "mul":
            found.update(v for v in eqn.invars if not isinstance(v, Literal) and uses[v] == 1)
    return found


def counts(jaxpr: Jaxpr) -> Counter[Var]:
    """How often each variable of a jaxpr is used in it, its outputs included."""
    variables = [*(v for eqn in jaxpr.eqns for v in eqn.invars), *jaxpr.outvars]
    return Counter(v for v in variables if not isinstance(v, Literal))


def added_to_products(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, JaxprEqn]]:
    """Additions to what products give, with these, in a jaxpr and those inside it.

    Between the two may be other additions, and reshapes, and nothing else may use the product or what is between: so
    the derivative of the product's output is that of the sum.
    """
    uses = counts(jaxpr)
    makers: dict[Var, JaxprEqn] = {}
    for eqn in jaxpr.eqns:
        makers.update((v, eqn) for v in eqn.outvars)
        if eqn.primitive.name in (*CALLS, "scan"):
            yield from added_to_products(called(eqn)[0])

    def products(v: Any, size: int) -> Iterator[JaxprEqn]:
        if isinstance(v, Literal) or v not in makers or uses[v] > 1 or aval(v).size != size:
            return
        maker = makers[v]
        if maker.primitive.name in ("dot_general", "conv_general_dilated"):
            yield maker
        elif maker.primitive.name in ("add", "add_any", "reshape", "squeeze", "expand_dims"):
            for before in maker.invars:
                yield from products(before, size)

    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "add":
            for v in eqn.invars:
                yield from ((eqn, product) for product in products(v, aval(eqn.outvars[0]).size))


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Slices of a variable that together are all of it, like the gates of an LSTM.

    As one split, their derivatives are put together by a concatenation; those of slices are padded to the size of the
    whole, each, and added up: a third of an LSTM's time.
    """

    whole: Var
    parts: tuple[Var, ...]
    sizes: tuple[int, ...]
    axis: int


def tilings(jaxpr: Jaxpr) -> dict[Var, Tiling]:
    """The tilings in a jaxpr, by each of their parts."""
    by_whole: dict[Var, list[JaxprEqn]] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "slice" and not isinstance(eqn.invars[0], Literal):
            by_whole.setdefault(eqn.invars[0], []).append(eqn)
    found = {}
    for whole, eqns in by_whole.items():
        tiling = _tiling(whole, eqns) if len(eqns) > 1 else None
        if tiling is not None:
            found.update(dict.fromkeys(tiling.parts, tiling))
    return found


def _tiling(whole: Var, slices: list[JaxprEqn]) -> Tiling | None:
    shape = aval(whole).shape
    cut = {k for eqn in slices for k, size in enumerate(aval(eqn.outvars[0]).shape) if size != shape[k]}
    if len(cut) != 1:
        return None
    (axis,) = cut
    slices = sorted(slices, key=lambda eqn: eqn.params["start_indices"][axis])
    starts, limits = ([eqn.params[name][axis] for eqn in slices] for name in ("start_indices", "limit_indices"))
    sizes = [aval(eqn.outvars[0]).shape[axis] for eqn in slices]
    dense = sizes == [limit - start for start, limit in zip(starts, limits, strict=True)]  # every entry of its range
    if not dense or [*starts, shape[axis]] != [0, *limits]:
        return None
    return Tiling(whole, tuple(eqn.outvars[0] for eqn in slices), tuple(sizes), axis)
