"""What a site is: where a parameter comes from and meets data, and by which rule its Jacobian there is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk.layerwise.lowering import Lowering

Array = Any


@dataclasses.dataclass(frozen=True)
class Param:
    """Where a value made of parameters only comes from.

    Attributes:
      key: the same for values that are made in the same way.
      leaves: indices of the parameters that it is made of.
      isometric: whether it is one parameter with its entries in another order, shape or dtype.
      base: if it repeats another such value along some axes: that value, its Param, and the axes of this one that the
        other's became (`broadcast_dimensions` of `lax.broadcast_in_dim`).
    """

    key: tuple[Any, ...]
    leaves: frozenset[int]
    isometric: bool = False
    base: tuple[Any, Param, tuple[int, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the Jacobian of a kind of site is made, for one example.

    Attributes:
      name: shown to people.
      explicit: (site, data, D) to G (R, *parameter), where data is the equation's other input; None if `assemble` is
        always how G is made.
      needs_data: whether that is used at all.
      factors: (site, data, D) to a (B, T, I) and D (R, B, T, J); None if G is not made of such factors. Of an embedding
        a is the index (T,), and D is (R, T, J).
      fold: (site, data, products of D (..., B, T, T)) to the data as (B, S, I), less than a, and the products for it,
        (..., B, S, S), or to None where a is better; None if it always is.
      assemble: (site, G (R, B, I, J)) to (R, *parameter).
      whole: whether G of a site is cheaper by `explicit` than of its factors; None if it never is.
      columns: the axes of the equation's output that B and J are made of; None if G is not made of such factors.
      elementwise: whether the parameter may be taken before it is repeated along axes of the output.
    """

    name: str
    explicit: Callable[[Site, Any, Array], Array] | None = None
    needs_data: bool = True
    factors: Callable[[Site, Any, Array], tuple[Array, Array]] | None = None
    fold: Callable[[Site, Array, Array], tuple[Array, Array] | None] | None = None
    assemble: Callable[[Site, Array], Array] | None = None
    whole: Callable[[Site], bool] | None = None
    columns: Callable[[Site], Sequence[int]] | None = None
    elementwise: bool = False


@dataclasses.dataclass(frozen=True)
class Site:
    """A parameter's meeting with data.

    Attributes:
      rule: how its Jacobian is made.
      eqn: the equation.
      operand: index of the parameter among the equation's inputs.
      param: where the parameter comes from; of the base if the rule takes the parameter before it is repeated.
      shape: of the parameter.
      axes: of the output that the parameter's axes are, for elementwise equations.
      lowering: what is done for the platform.
      dtype: of the zeros added.
      perturbed: shape of the zeros added: the output's, or for the generic rule the parameter's.
      differentiated: whether the equation's data depends on parameters, so that derivatives pass through to it.
      scaled: whether nothing is done with the equation's output but to multiply it.
      shared: whether the derivative at the output is the same for all examples.
      steps: lengths of the scans that it is in, outermost first.
    """

    rule: Rule
    eqn: JaxprEqn
    operand: int
    param: Param
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    lowering: Lowering
    dtype: Any
    perturbed: tuple[int, ...]
    differentiated: bool
    scaled: bool = False
    shared: bool = False
    steps: tuple[int, ...] = ()
