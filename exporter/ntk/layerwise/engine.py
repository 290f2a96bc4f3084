"""The layerwise NTK: features of each example at every site, contracted site by site."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.layerwise import contract, lowering, rules
from exporter.ntk.layerwise.analysis import Site, Sort, Trace
from exporter.ntk.layerwise.contract import Shape
from exporter.ntk.layerwise.equations import aval
from exporter.ntk.layerwise.lowering import Lowering
from exporter.ntk.layerwise.outputs import OutputAxes

Array = Any
ApplyFn = Callable[..., Array]
# The arguments of one contraction, batched over examples on axis 0: (G,), (a, D) or (index, D).
Features = tuple[Array, ...]


def layerwise_kernel_fn(
    apply_fn: ApplyFn,
    *,
    trace_axes: Sequence[int],
    diagonal_axes: Sequence[int],
    coupled: bool = False,
    memory: int = 1 << 30,
) -> Callable[..., Array]:
    """kernel(trainable, frozen, x1, x2) = J(x1) J(x2)ᵀ as `exporter.ntk.kernel.kernel_fn` describes it.

    Lowered for several platforms, each gets the convolutions that it is fast at. With x2 None it is the kernel of x1
    with itself, whose features are computed once. If the derivatives of all outputs would take more than `memory`
    bytes, they are made for some outputs at a time, with a forward pass for each such part.
    """

    def kernel(trainable: Any, frozen: Any, x1: tuple[Array, ...], x2: tuple[Array, ...] | None = None) -> Array:
        if coupled:  # the whole batch is the one example, and its batch axis an axis of the output like others
            x1, x2 = tuple(a[None] for a in x1), None if x2 is None else tuple(a[None] for a in x2)
        counts = None if coupled else (x1[0].shape[0], (x1 if x2 is None else x2)[0].shape[0])

        def features(x: tuple[Array, ...], how: Lowering) -> ExampleFeatures:
            return ExampleFeatures(
                apply_fn,
                trainable,
                frozen,
                x,
                counts=counts,
                trace_axes=trace_axes,
                diagonal_axes=diagonal_axes,
                how=how,
            )

        def computed_by(how: Lowering) -> Array:
            left = features(x1, how)
            right = left if x2 is None or not coupled else features(x2, how)
            return _kernel(left, right, trainable, frozen, x1, x2, counts=counts, memory=memory)

        total = lax.platform_dependent(
            cpu=lambda: computed_by(lowering.CPU), default=lambda: computed_by(lowering.DEFAULT)
        )
        return total[0, 0] if coupled else total

    return kernel


def _kernel(
    left: ExampleFeatures,
    right: ExampleFeatures,
    trainable: Any,
    frozen: Any,
    x1: tuple[Array, ...],
    x2: tuple[Array, ...] | None,
    *,
    counts: tuple[int, int] | None,
    memory: int,
) -> Array:
    features1, features2 = jax.jit(left.compute), jax.jit(right.compute)  # traced once if both sides are alike
    if left is right:
        features2 = features1

    def of_outputs(basis1: Array, basis2: Array) -> Array:
        """The kernel (n1, n2, D, K1, K2) of the outputs of these cotangents."""
        f1 = features1(trainable, frozen, x1, basis1)
        f2 = f1 if x2 is None else features2(trainable, frozen, x2, basis2)
        total: Array = 0.0
        for component, parts1, parts2 in zip(left.components, f1, f2, strict=True):
            for part1, part2 in zip(parts1, parts2, strict=True):
                total = total + contract.FORMS[component.form](*part1, *part2)
        return total

    bases = left.axes.basis(left.dtype), right.axes.basis(right.dtype)
    if counts is None:
        total = of_outputs(*bases)
    else:
        total = _in_chunks(of_outputs, bases, left.outputs_at_once(sum(counts), memory))
    return left.axes.arrange(total, right.axes)


@dataclasses.dataclass(frozen=True)
class Component:
    """Sites whose parameters are made of the same variables.

    Attributes:
      groups: indices of the sites, those with one parameter together.
      leaves: the variables.
      form: of the contraction, in `contract.FORMS`: "gram", "index" (the Gram form of an embedding), "explicit", or
        "joined", the explicit form of one parameter whose sites have factors.
      pulled_back: whether Jacobians with respect to the groups' parameters become Jacobians with respect to the
        variables by the derivative of the prefix between them; else the one parameter is the one variable, its entries
        in some order.
    """

    groups: tuple[tuple[int, ...], ...]
    leaves: tuple[int, ...]
    form: str
    pulled_back: bool


class ExampleFeatures:
    """What the kernel needs to know of each example, for one shape of examples.

    Attributes:
      axes: of an example's output.
      dtype: of that.
      sites: where parameters meet data.
      shapes: of each site's factors, None where its rule has none.
      components: the sites, grouped.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        x: tuple[Any, ...],
        *,
        counts: tuple[int, int] | None,
        trace_axes: Sequence[int],
        diagonal_axes: Sequence[int],
        how: Lowering = lowering.DEFAULT,
    ) -> None:
        """Traces `apply_fn` on one example and decides how each site is contracted.

        Args:
          apply_fn: `apply_fn(trainable, frozen, inputs)`, of shape (n, *S).
          trainable: the parameters, by path; only shapes and dtypes are used, here and below.
          frozen: the other variables, by path.
          x: the inputs (n, ...); or, if examples are coupled, (1, n, ...).
          counts: numbers of examples of the kernel's two sides; None if examples are coupled.
          trace_axes: axes of the output to average over, counted from the batch axis and not negative.
          diagonal_axes: axes of the output of which only equal positions are kept.
          how: what is done for the platform.
        """
        self._coupled = counts is None
        example = tuple(jax.ShapeDtypeStruct(a.shape[1:] if self._coupled else (1, *a.shape[1:]), a.dtype) for a in x)
        specs = jax.tree.map(lambda v: jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)), (trainable, frozen))
        closed, output = jax.make_jaxpr(apply_fn, return_shape=True)(*specs, example)
        sizes = [len(jax.tree.leaves(part)) for part in (*specs, example)]
        self._trace = Trace(closed, [None] * sizes[0] + [Sort.CONSTANT] * sizes[1] + [Sort.DATA] * sizes[2], how)
        self._shape, self.dtype = output.shape, output.dtype
        batch_axes = 0 if self._coupled else 1
        self.axes = OutputAxes(
            output.shape[batch_axes:],
            trace_axes=[a % output.ndim - batch_axes for a in trace_axes],
            diagonal_axes=[a % output.ndim - batch_axes for a in diagonal_axes],
        )
        self.sites = self._trace.sites
        self.shapes = [_factor_shape(site) for site in self.sites]
        self.components = tuple(self._components(counts))

    def outputs_at_once(self, examples: int, memory: int) -> int:
        """How many outputs' features, of so many examples, fit into so many bytes; 1 at least."""
        derivatives = [math.prod(site.steps + site.perturbed) for site in self.sites]
        numbers = max(derivatives)  # of the site at work; the others' are no longer or not yet there
        for component in self.components:
            for group in component.groups:
                kept = component.form in ("gram", "index")
                numbers += sum(derivatives[k] for k in group) if kept else math.prod(self.sites[group[0]].shape)
        return max(1, memory // (examples * numbers * np.dtype(self.dtype).itemsize))

    def compute(self, trainable: Any, frozen: Any, x: tuple[Array, ...], basis: Array) -> list[list[Features]]:
        """For each component its features, one for each variable if it is pulled back.

        `basis` holds the cotangents (D, C, K, *S) of the outputs that they are of (see `OutputAxes`).
        """
        variables = [*jax.tree.leaves(trainable), *jax.tree.leaves(frozen)]
        pull_backs = [self._pull_back(c, variables) if c.pulled_back else None for c in self.components]
        outputs = basis.shape[:3]
        basis = basis.reshape(-1, *self._shape)

        def one(example: tuple[Array, ...]) -> list[list[Features]]:
            zeros = [jnp.zeros(site.steps + site.perturbed, site.dtype) for site in self.sites]

            def perturbed(zeros: list[Array]) -> tuple[Array, list[Array]]:
                (output,), saved = self._trace.evaluate([*variables, *map(self._batch, example)], zeros)
                return output, saved

            _, vjp, saved = jax.vjp(perturbed, zeros, has_aux=True)
            derivatives = jax.vmap(lambda cotangent: vjp(cotangent)[0])(basis)
            return [
                self._features(component, pull_back, saved, derivatives, outputs)
                for component, pull_back in zip(self.components, pull_backs, strict=True)
            ]

        return jax.vmap(one)(x)

    def _batch(self, example: Array) -> Array:
        return example if self._coupled else example[None]

    def _features(
        self,
        component: Component,
        pull_back: Callable | None,
        saved: list[Any],
        derivatives: list[Array],
        outputs: tuple[int, ...],
    ) -> list[Features]:
        """The arguments of the component's contraction, for one example, with R split into `outputs`, (D, C, K)."""
        if component.form == "explicit":
            jacobians = [
                sum(_explicit(self.sites[k], saved[k], derivatives[k]) for k in group) for group in component.groups
            ]
            if pull_back is not None:
                jacobians = jax.vmap(pull_back)(jacobians)
            return [(g.reshape(*outputs, -1),) for g in jacobians]
        (group,) = component.groups
        parts = zip(*(_factors(self.sites[k], saved[k], derivatives[k]) for k in group), strict=True)
        a, d = (
            jnp.concatenate(part, axis)
            for part, axis in zip(parts, (-1 if component.form == "index" else -2, -2), strict=True)
        )
        if component.form == "joined":
            g = contract.join(a, d)
            return [(g.reshape(*g.shape[:2], *outputs, g.shape[3]),)]
        return [(a, d.reshape(*outputs, *d.shape[1:]))]

    def _pull_back(self, component: Component, variables: list[Array]) -> Callable[[list[Array]], list[Array]]:
        """The derivative of a component's prefix, transposed: from its groups' parameters to its variables."""

        def prefix(leaves: list[Array]) -> list[Array]:
            replaced = list(variables)
            for k, leaf in zip(component.leaves, leaves, strict=True):
                replaced[k] = leaf
            operands = self._trace.operands(replaced)
            return [operands[group[0]] for group in component.groups]

        operands, vjp = jax.vjp(prefix, [variables[k] for k in component.leaves])
        return lambda jacobians: vjp([g.astype(w.dtype) for g, w in zip(jacobians, operands, strict=True)])[0]

    def _components(self, counts: tuple[int, int] | None) -> list[Component]:
        by_parameter: dict[tuple[Any, ...], list[int]] = {}
        for k, site in enumerate(self.sites):
            by_parameter.setdefault(site.param.key, []).append(k)
        merged: list[tuple[frozenset[int], list[tuple[int, ...]]]] = []
        for group in map(tuple, by_parameter.values()):
            leaves = self.sites[group[0]].param.leaves
            touching = [other for other in merged if other[0] & leaves]
            merged = [other for other in merged if not other[0] & leaves]
            merged.append((leaves.union(*(c[0] for c in touching)), [g for c in touching for g in c[1]] + [group]))
        components = []
        for leaves, groups in merged:
            alone = len(groups) == 1 and self.sites[groups[0][0]].param.isometric
            form = self._form(groups[0], counts) if alone and counts else "explicit"
            components.append(Component(tuple(groups), tuple(sorted(leaves)), form, pulled_back=not alone))
        return components

    def _form(self, group: tuple[int, ...], counts: tuple[int, int]) -> str:
        """The cheapest form of sites of one parameter, which is its variable."""
        shapes = [self.shapes[k] for k in group]
        kinds = {
            (self.sites[k].rule.name, s and (s.batch, s.data, s.derivative)) for k, s in zip(group, shapes, strict=True)
        }
        if len(kinds) > 1 or shapes[0] is None:
            return "explicit"
        positions = sum(s.positions for s in shapes if s is not None)
        joined = dataclasses.replace(shapes[0], positions=positions)
        index = self.sites[group[0]].rule is rules.EMBEDDING
        if joined.gram_cost(*counts, self.axes, index=index) < joined.explicit_cost(*counts, self.axes):
            return "index" if index else "gram"
        return "explicit" if index else "joined"


def _in_chunks(fn: Callable[..., Array], bases: tuple[Array, Array], outputs_at_once: int) -> Array:
    """fn of two bases (D, C, K, *S): (n1, n2, D, K, K), with not many more than so many outputs at once.

    Diagonal outputs are done some at a time, or else traced ones summed some at a time. Kept ones need each other.
    """
    d, c, k = bases[0].shape[:3]
    if d * c * k <= outputs_at_once:
        return fn(*bases)
    axis, others = (0, c * k) if d > 1 else (1, k)
    chunks_needed = -(-bases[0].shape[axis] // max(1, outputs_at_once // others))
    size = -(-bases[0].shape[axis] // chunks_needed)
    chunks = [_chunks(basis, axis, size) for basis in bases]
    if axis == 1:
        specs = jax.eval_shape(fn, *(b[0] for b in chunks))
        total, _ = lax.scan(
            lambda total, parts: (total + fn(*parts), None), jnp.zeros(specs.shape, specs.dtype), chunks
        )
        return total
    parts = jnp.moveaxis(lax.map(lambda parts: fn(*parts), chunks), 0, 2)  # (n1, n2, chunks, size, K, K)
    return parts.reshape(*parts.shape[:2], -1, *parts.shape[4:])[:, :, :d]


def _chunks(basis: Array, axis: int, size: int) -> Array:
    """The basis cut along an axis, with zeros, which add nothing, to fill up the last chunk: (chunks, ...)."""
    count = -(-basis.shape[axis] // size)
    padding = [(0, count * size - basis.shape[axis] if k == axis else 0) for k in range(basis.ndim)]
    basis = jnp.pad(basis, padding)
    return jnp.moveaxis(basis.reshape(*basis.shape[:axis], count, size, *basis.shape[axis + 1 :]), axis, 0)


def _factor_shape(site: Site) -> Shape | None:
    """The sizes of a site's factors, None if its rule has none."""
    if site.rule.factors is None:
        return None
    data = aval(site.eqn.invars[1 - site.operand])
    a, d = jax.eval_shape(
        lambda a, d: _factors(site, a, d),
        jax.ShapeDtypeStruct((*site.steps, *data.shape), data.dtype),
        jax.ShapeDtypeStruct((1, *site.steps, *site.perturbed), site.dtype),
    )
    if site.rule is rules.EMBEDDING:
        return Shape(1, d.shape[1], site.shape[0], d.shape[2])
    return Shape(a.shape[0], a.shape[1], a.shape[2], d.shape[3])


def _explicit(site: Site, data: Any, d: Array) -> Array:
    """G (R, *parameter) of a site, summed over the steps of the scans that it is in."""
    if site.rule.assemble is not None:
        g = contract.join(*_factors(site, data, d))
        return site.rule.assemble(site, jnp.transpose(g, (2, 0, 1, 3)))
    fn = site.rule.explicit
    assert fn is not None
    for _ in site.steps:
        fn = _sum_steps(fn)
    return fn(site, data, d)


def _sum_steps(fn: Callable[..., Array]) -> Callable[..., Array]:
    def summed(site: Site, data: Any, d: Array) -> Array:
        return jnp.sum(jax.vmap(lambda a, d: fn(site, a, d), in_axes=(None if data is None else 0, 1))(data, d), 0)

    return summed


def _factors(site: Site, data: Any, d: Array) -> Features:
    """The factors of a site, with the steps of the scans that it is in among the positions."""
    assert site.rule.factors is not None
    fn = site.rule.factors
    for _ in site.steps:
        fn = _join_steps(fn, index=site.rule is rules.EMBEDDING)
    return fn(site, data, d)


def _join_steps(fn: Callable[..., Features], *, index: bool) -> Callable[..., Features]:
    def joined(site: Site, data: Any, d: Array) -> Features:
        a, d = jax.vmap(lambda a, d: fn(site, a, d), in_axes=(0, 1), out_axes=(0 if index else -3, -3))(data, d)
        a = a.reshape(-1) if index else a.reshape(*a.shape[:-3], -1, a.shape[-1])
        return a, d.reshape(*d.shape[:-3], -1, d.shape[-1])

    return joined
