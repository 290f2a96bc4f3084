"""Finds the sites of a jaxpr, the equations in which a parameter meets data, and evaluates it with them perturbed.

A value is constant, or made of parameters only (a prefix: reshapes, casts, weight normalization), or data. An equation
of parameters and data is a site. A zero added to a site's output, or to its parameter where no rule knows better,
leaves the model as it is; the derivatives with respect to all these zeros are what Jacobians are made of.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
from jax import lax

from exporter.compat.jax_names import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from exporter.ntk.equations import aval, bind
from exporter.ntk.layerwise import linear, rules, uses
from exporter.ntk.layerwise.lowering import DEFAULT, Lowering, opaque_false
from exporter.ntk.layerwise.sites import Param, Rule, Site


class Sort(enum.Enum):
    """What a value that is not made of parameters only may be; DERIVED is data that depends on a parameter too."""

    CONSTANT = enum.auto()
    DATA = enum.auto()
    DERIVED = enum.auto()


Tag = Sort | Param
Tagged = tuple[Any, Tag]
_DATA = (Sort.DATA, Sort.DERIVED)


class Trace:
    """A jaxpr whose inputs are parameters, constants and data.

    Attributes:
      jaxpr: that.
      sites: where the parameters meet data, in the order of evaluation.
      kept: variables whose derivatives are in memory whatever uses them (see `uses.kept_derivatives`).
      materialized: others whose derivatives must be put there (see `Lowering.materialized`).
    """

    def __init__(self, closed: ClosedJaxpr, sorts: Sequence[Sort | None], lowering: Lowering = DEFAULT) -> None:
        """Finds the sites.

        Args:
          closed: the jaxpr.
          sorts: of each input: None for a parameter.
          lowering: how equations of data are computed, and derivatives at sites.
        """
        self.jaxpr, self._consts, self._lowering = closed.jaxpr, closed.consts, lowering
        self._tags: list[Tag] = [
            Param((-1 - i,), frozenset([i]), isometric=True) if sort is None else sort for i, sort in enumerate(sorts)
        ]
        walk = _Walk(self._lowering, None)
        specs = [jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in closed.jaxpr.invars]
        jax.eval_shape(lambda args: [value for value, _ in self._run(walk, args)], specs)
        scaled = uses.only_scaled(closed.jaxpr)
        shared = linear.shared_derivatives(closed.jaxpr, walk.derived, walk.data)
        self.sites = tuple(
            dataclasses.replace(
                site,
                scaled=site.eqn.outvars[0] in scaled,
                shared=site.eqn.outvars[0] in shared and site.rule is not rules.GENERIC and not site.steps,
            )
            for site in walk.sites
        )
        self.kept = uses.kept_derivatives(closed.jaxpr, walk.derived)
        self.materialized = (walk.meetings | self._convolved()) - self.kept

    def _convolved(self) -> set[Var]:
        """The outputs of large convolutions, after what is added to them: so that the bias has that derivative too.

        Not of the first ones: they have no derivative of their data, another use of that of their output.
        """
        sums = {product.outvars[0]: addition.outvars[0] for addition, product in uses.added_to_products(self.jaxpr)}
        later = [s.eqn.outvars[0] for s in self.sites if s.rule is rules.CONVOLUTION and s.differentiated]
        return {sums.get(v, v) for v in later if aval(v).size >= LARGE}

    def evaluate(self, args: Sequence[Any], zeros: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The outputs with `zeros` added at the sites; and for each site the data that its rule needs."""
        false = None if self._lowering.materialized is None else opaque_false(args[0])
        walk = _Walk(self._lowering, iter(zeros), false, materialized=self.materialized)
        return [value for value, _ in self._run(walk, args)], walk.saved

    def operands(self, variables: Sequence[Any]) -> list[Any]:
        """The parameter at each site, as a function of the jaxpr's parameters and constants."""
        walk = _Walk(self._lowering, None, params_only=True)
        self._run(walk, [*variables, *[None] * (len(self._tags) - len(variables))])
        return walk.operands

    def _run(self, walk: _Walk, args: Sequence[Any]) -> list[Tagged]:
        return walk.run(self.jaxpr, self._consts, list(zip(args, self._tags, strict=True)), ())


LARGE = 1 << 12  # numbers in a convolution's output whose derivative is worth being kept


class _Walk:
    """One evaluation of the jaxpr: to find sites, to perturb them (with `zeros`), or for the prefixes alone."""

    def __init__(
        self,
        lowering: Lowering,
        zeros: Iterator[Any] | None,
        false: Any = None,
        *,
        materialized: Collection[Var] = (),
        params_only: bool = False,
    ) -> None:
        self._lowering, self._zeros, self._false = lowering, zeros, false
        self._materialized, self._params_only = materialized, params_only
        self.derived: set[Var] = set()
        self.data: set[Var] = set()
        self.meetings: set[Var] = set()  # where derivatives of several uses meet, as in a residual connection
        self.sites: list[Site] = []
        self.saved: list[Any] = []
        self.operands: list[Any] = []

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Tagged], place: tuple[int, ...]) -> list[Tagged]:
        env: dict[Any, Tagged] = {}

        def read(v: Any) -> Tagged:
            return (v.val, Sort.CONSTANT) if isinstance(v, Literal) else env[v]

        env.update(zip(jaxpr.constvars, ((c, Sort.CONSTANT) for c in consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        tilings = {} if self._params_only else uses.tilings(jaxpr)
        for i, eqn in enumerate(jaxpr.eqns):
            tiling = next((tilings[v] for v in eqn.outvars if v in tilings), None)
            if tiling is not None and env[tiling.whole][1] in _DATA:
                if eqn.outvars[0] not in env:
                    value, tag = env[tiling.whole]
                    parts = lax.split(value, tiling.sizes, tiling.axis)
                    env.update(zip(tiling.parts, ((part, tag) for part in parts), strict=True))
                continue
            outputs = self._equation(eqn, [read(v) for v in eqn.invars], (*place, i))
            for v, (value, tag) in zip(eqn.outvars, outputs, strict=True):
                env[v] = (self._keep(value) if v in self._materialized else value, tag)
        self.derived.update(v for v, (_, tag) in env.items() if tag is Sort.DERIVED)
        self.data.update(v for v, (_, tag) in env.items() if tag in _DATA)
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: JaxprEqn, inputs: list[Tagged], place: tuple[int, ...]) -> list[Tagged]:
        has_data = any(tag in _DATA for _, tag in inputs)
        params = [tag for _, tag in inputs if isinstance(tag, Param)]
        if eqn.primitive.name in uses.CALLS and (params or has_data):
            return self.run(*uses.called(eqn), inputs, place)
        if params and has_data:
            scanned = self._scan(eqn, inputs, place) if eqn.primitive.name == "scan" else None
            return self._sites(eqn, inputs) if scanned is None else scanned
        tag = _sort(inputs) if has_data else Sort.CONSTANT
        values = [value for value, _ in inputs]
        if self._false is not None and eqn.primitive.name == "reduce_window_max":
            values = [self._keep(values[0])]  # whose derivative is a sum over taps, for each use of it
        outputs = self._bind(eqn, values, tag)
        if eqn.primitive.name != "dot_general" and _derived(inputs) > 1:
            self.meetings.update(eqn.outvars)
        if not params:
            return [(value, tag) for value in outputs]
        return [(value, _param(eqn, inputs, (*place, k))) for k, value in enumerate(outputs)]

    def _bind(self, eqn: JaxprEqn, values: Sequence[Any], tag: Tag) -> Sequence[Any]:
        if self._params_only and tag in _DATA:
            return [None] * len(eqn.outvars)
        if tag not in _DATA:
            return bind(eqn, values)
        outputs = self._lowering.bind(eqn, values)
        store = self._lowering.stored if _is_grouped(eqn) else None
        return outputs if store is None or self._false is None else [store(value, self._false) for value in outputs]

    def _keep(self, value: Any) -> Any:
        """The value, with its derivative kept in memory where the platform wants that."""
        keep = self._lowering.materialized
        if keep is None or self._false is None or not jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            return value
        return keep(value, self._false)

    def _sites(self, eqn: JaxprEqn, inputs: list[Tagged]) -> list[Tagged]:
        """The equation with zeros added to its output if a rule knows its one parameter, else to all its parameters."""
        at = [k for k, (_, tag) in enumerate(inputs) if isinstance(tag, Param)]
        rule = rules.find(eqn, at)
        values = [value for value, _ in inputs]
        if rule is rules.GENERIC:
            for k in at:
                values[k] = self._site(rule, eqn, k, inputs[k])
            return [(value, Sort.DERIVED) for value in self._bind(eqn, values, Sort.DERIVED)]
        (k,) = at
        (output,) = self._bind(eqn, values, Sort.DERIVED)
        differentiated = inputs[1 - k][1] is Sort.DERIVED
        return [(self._site(rule, eqn, k, inputs[k], values[1 - k], output, differentiated), Sort.DERIVED)]

    def _site(
        self,
        rule: Rule,
        eqn: JaxprEqn,
        operand: int,
        tagged: Tagged,
        data: Any = None,
        output: Any = None,
        differentiated: bool = True,
    ) -> Any:
        """Records a site; returns its output, or for the generic rule its parameter, with a zero added."""
        given = aval(eqn.invars[operand])
        value, param = tagged
        assert isinstance(param, Param)
        perturbed, zeroed = (value, given) if rule is rules.GENERIC else (output, aval(eqn.outvars[0]))
        shape, axes = tuple(given.shape), tuple(range(given.ndim))
        if rule.elementwise and param.base is not None:
            value, param, axes = param.base
            shape = jax.numpy.shape(value)
        self.operands.append(value)
        self.saved.append(data if rule.needs_data else None)
        self.sites.append(
            Site(
                rule,
                eqn,
                operand,
                param,
                shape,
                axes,
                self._lowering,
                zeroed.dtype,
                tuple(zeroed.shape),
                differentiated,
            )
        )
        if self._zeros is not None:
            perturbed = perturbed + next(self._zeros)
        return perturbed

    def _scan(self, eqn: JaxprEqn, inputs: list[Tagged], place: tuple[int, ...]) -> list[Tagged] | None:
        """A scan with the sites of its body perturbed at every step; None if its results are made of parameters only.

        Parameters among the initial carry and the scanned inputs are perturbed themselves: to the body they are data.
        """
        p, body = eqn.params, eqn.params["jaxpr"]
        n_consts, n_carry = p["num_consts"], p["num_carry"]
        tags: list[Tag] = [tag for _, tag in inputs[:n_consts]] + [Sort.DERIVED] * (len(inputs) - n_consts)

        def run_body(walk: _Walk, args: Sequence[Any]) -> list[Tagged]:
            return walk.run(body.jaxpr, body.consts, list(zip(args, tags, strict=True)), (*place, -1))

        inner = _Walk(self._lowering, None, params_only=self._params_only)
        outs: list[Tagged] = []
        consts = [value for value, _ in inputs[:n_consts]]
        if self._params_only:
            outs = run_body(inner, [*consts, *[None] * (len(inputs) - n_consts)])
        else:
            specs = [jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in body.jaxpr.invars]
            jax.eval_shape(lambda args: outs.extend(run_body(inner, args)), specs)
        if any(isinstance(tag, Param) for _, tag in outs):
            return None
        values = [value for value, _ in inputs]
        for k in range(n_consts, len(inputs)):
            if isinstance(inputs[k][1], Param):
                values[k] = self._site(rules.GENERIC, eqn, k, inputs[k])
        self.sites += [dataclasses.replace(site, steps=(p["length"], *site.steps)) for site in inner.sites]
        self.operands += inner.operands
        if self._params_only:
            return [(None, Sort.DERIVED)] * len(eqn.outvars)
        zeros = None if self._zeros is None else [next(self._zeros) for _ in inner.sites]

        def step(carry: list[Any], slices: tuple[list[Any], Any]) -> tuple[list[Any], tuple[list[Any], list[Any]]]:
            x, eps = slices
            walk = _Walk(self._lowering, None if eps is None else iter(eps))
            results = [value for value, _ in run_body(walk, [*consts, *carry, *x])]
            return results[:n_carry], (results[n_carry:], walk.saved)

        init, xs = values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
        carry, (ys, saved) = lax.scan(step, init, (xs, zeros), p["length"], reverse=p["reverse"], unroll=p["unroll"])
        self.saved += saved
        return [(value, Sort.DERIVED) for value in (*carry, *ys)]


def _derived(inputs: Sequence[Tagged]) -> int:
    """How many of them depend on a parameter."""
    return sum(tag is Sort.DERIVED for _, tag in inputs)


def _is_grouped(eqn: JaxprEqn) -> bool:
    """Whether it is a convolution of groups of channels, which on CPUs is a sum that XLA fuses into all of its uses."""
    return eqn.primitive.name == "conv_general_dilated" and eqn.params["feature_group_count"] > 1


def _sort(inputs: Sequence[Tagged]) -> Sort:
    """Of what is made of data, and maybe of constants."""
    return Sort.DERIVED if _derived(inputs) else Sort.DATA


def _param(eqn: JaxprEqn, inputs: list[Tagged], place: tuple[int, ...]) -> Param:
    """Where the output at `place` of an equation of parameters and constants comes from."""
    name, tags = eqn.primitive.name, [tag for _, tag in inputs]
    params = [tag for tag in tags if isinstance(tag, Param)]
    leaves = frozenset().union(*(param.leaves for param in params))
    key: tuple[Any, ...] = place
    if len(params) == len(tags):  # nothing but parameters: the same operation on the same ones gives the same
        key = (name, str(eqn.params), place[-1], *(param.key for param in params))
    first, output = aval(eqn.invars[0]), aval(eqn.outvars[0])
    broadcast = name == "broadcast_in_dim"
    reordered = name in uses.REORDERING or (broadcast and first.size == output.size)
    if reordered and isinstance(tags[0], Param):
        return Param(key, leaves, tags[0].isometric and jax.numpy.issubdtype(output.dtype, jax.numpy.floating))
    if broadcast and isinstance(tags[0], Param):
        return Param(key, leaves, base=(inputs[0][0], tags[0], tuple(eqn.params["broadcast_dimensions"])))
    return Param(key, leaves)
