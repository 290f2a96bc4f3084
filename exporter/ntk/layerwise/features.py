"""What the kernel needs to know of each example: features of its Jacobian, in the form cheapest for every parameter."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.ntk.equations import aval
from exporter.ntk.layerwise import biases, contract, heads, lowering, rules, site_jacobians
from exporter.ntk.layerwise.analysis import Sort, Trace
from exporter.ntk.layerwise.contract import Shape
from exporter.ntk.layerwise.lowering import Lowering
from exporter.ntk.layerwise.outputs import OutputAxes

Array = Any
ApplyFn = Callable[..., Array]
# For each of `contract.FORMS` the arguments of its contractions, batched over examples on axis 0.
Features = dict[str, list[tuple[Array, ...]]]

# What an operation for one more part of the outputs costs, in bytes moved (44 µs a site where a MB takes 0.26 ms).
OPERATION = 170_000
MOST_PADDING = 1 / 16  # of the outputs, to fill up the last part
SMALL = 1 << 14  # explicit features of fewer numbers for an example are contracted together


@dataclasses.dataclass(frozen=True)
class Component:
    """Sites whose parameters are made of the same variables.

    Attributes:
      groups: indices of the sites, those with one parameter together.
      leaves: the variables.
      form: "gram", "index" (the Gram form of an embedding), "shared", "explicit", or "joined", the explicit form of one
        parameter all of whose sites have factors of one kind.
      pulled_back: whether Jacobians with respect to the groups' parameters become Jacobians with respect to the
        variables by the derivative of the prefix between them; else the one parameter is the one variable, its entries
        in some order.
      shape: of the factors of all sites of the one parameter together, None if there are none of one kind.
      folded: of the data of the shared form, None in others.
      bias: the site of a bias that is one more row of this parameter.
    """

    groups: tuple[tuple[int, ...], ...]
    leaves: tuple[int, ...]
    form: str
    pulled_back: bool
    shape: Shape | None = None
    bias: int | None = None
    folded: Shape | None = None


class ExampleFeatures:
    """What the kernel needs to know of each example, for one shape of examples.

    Attributes:
      axes: of an example's output.
      dtype: of that.
      sites: where parameters meet data.
      shapes: of each site's factors, None where its rule has none.
      components: the sites, grouped.
      variables: paths of the parameters, in the order of `Param.leaves`.
      inputs: how many arrays an example is.
      trace: the model's equations.
      narrowed: the model that is computed, if its last layer is narrower (see `heads`).
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
        narrow: bool = False,
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
          narrow: whether to take the model with a narrower last layer, if it has one (see `heads`). The variables of
            both sides of a kernel are then `narrowed.variables` of the model's, made once: R is not the only one of its
            kind, and that of another program need not be the same one.
        """
        self._coupled, self._cache = counts is None, how.cache
        self.variables = tuple(sorted(trainable))
        example = tuple(jax.ShapeDtypeStruct(a.shape[1:] if self._coupled else (1, *a.shape[1:]), a.dtype) for a in x)
        specs = jax.tree.map(lambda v: jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)), (trainable, frozen))
        closed = jax.make_jaxpr(apply_fn)(*specs, example)
        sizes = [len(jax.tree.leaves(part)) for part in (*specs, example)]
        self.inputs = sizes[2]
        rank = closed.out_avals[0].ndim
        traced = {a % rank for a in trace_axes}
        self.narrowed = heads.narrowed(closed, sizes[0], sizes[1], traced) if narrow else None
        closed = closed if self.narrowed is None else self.narrowed.closed
        self.trace = Trace(closed, [None] * sizes[0] + [Sort.CONSTANT] * sizes[1] + [Sort.DATA] * sizes[2], how)
        self._shape, self.dtype = closed.out_avals[0].shape, closed.out_avals[0].dtype
        batch_axes = 0 if self._coupled else 1
        self.axes = OutputAxes(
            self._shape[batch_axes:],
            trace_axes=[a % rank - batch_axes for a in trace_axes],
            diagonal_axes=[a % rank - batch_axes for a in diagonal_axes],
        )
        self.sites = self.trace.sites
        self.shapes = [site_jacobians.factor_shape(site) for site in self.sites]
        self.components = tuple(self._components(counts))
        # Traced once, whatever asks for it and in whichever forms features are.
        self._differentiate_once = jax.jit(self._differentiate, inline=True)

    def fitted(self, counts: tuple[int, int]) -> ExampleFeatures:
        """The same in the forms best for so many examples a side."""
        features = copy.copy(self)
        features.components = tuple(self._components(counts))
        return features

    def variables_of(self, trainable: Any, frozen: Any) -> tuple[Any, Any]:
        """Those that the features are computed of, made of the model's."""
        if self.narrowed is None:
            return trainable, frozen
        leaves, tree = jax.tree.flatten((trainable, frozen))
        trainable, frozen = jax.tree.unflatten(tree, self.narrowed.variables(leaves))
        return trainable, frozen

    def outputs_at_once(self, examples: int, memory: int) -> int:
        """How many outputs' features, of so many examples, fit into so many bytes; 1 at least."""
        return max(1, memory // (examples * self.bytes_of_output))

    @property
    def bytes_of_output(self) -> int:
        """Of the derivatives and features of one output of one example, counted from shapes."""
        derivatives = [math.prod(site.steps + site.perturbed) for site in self.sites]
        numbers = max(derivatives)  # of the site at work; the others' are no longer or not yet there
        for component in self.components:
            for group in component.groups:
                if component.form in ("gram", "index"):
                    numbers += sum(derivatives[k] for k in group)
                elif component.form != "shared":  # which keeps as much for any number of traced outputs
                    numbers += math.prod(self.sites[group[0]].shape)
        return numbers * np.dtype(self.dtype).itemsize

    def outputs_in_cache(self, examples: int) -> int:
        """How many outputs at a time, of so many examples, are fastest by the bytes that then move through memory.

        Of each derivative it is what the cache does not hold. Against fewer outputs stands what is read again for each
        part of them: the data that derivatives are multiplied with, and as much as an operation costs to begin.
        """
        if self._cache is None:
            return self.axes.count
        itemsize = examples * np.dtype(self.dtype).itemsize
        derivatives = self._derivative_bytes(examples)
        joined = [c.shape for c in self.components if c.form == "joined" and c.shape is not None]
        again = OPERATION * len(self.sites) + itemsize * sum(s.batch * s.positions * s.data for s in joined)

        def moved(outputs: int) -> float:
            return -(-count // outputs) * (again + np.maximum(outputs * derivatives - self._cache, 0).sum())

        count = self.axes.count
        root = range(1, math.isqrt(count) + 1)
        sizes = sorted({*root, *(-(-count // parts) for parts in root)}, reverse=True)
        return min((size for size in sizes if -count % size <= count * MOST_PADDING), key=moved)

    def beyond_cache(self, examples: int) -> bool:
        """Whether a derivative of all outputs, of so many examples, moves through memory."""
        largest = self.axes.count * self._derivative_bytes(examples).max(initial=0)
        return self._cache is not None and largest > self._cache

    def _derivative_bytes(self, examples: int) -> np.ndarray:
        """Bytes of each site's derivative of one output."""
        sizes = np.array([math.prod(site.perturbed) * (1 if site.shared else examples) for site in self.sites])
        return np.dtype(self.dtype).itemsize * sizes

    def compute(self, trainable: Any, frozen: Any, x: tuple[Array, ...], basis: Array) -> Features:
        """The features of the examples.

        `basis` holds the cotangents (D, C, K, *S) of the outputs that they are of (see `OutputAxes`).
        """
        differentiate, assemble = self.steps(trainable, frozen, basis)
        return jax.vmap(lambda example: assemble(*differentiate(example)))(x)

    def compute_sides(
        self, trainable: Any, frozen: Any, x: tuple[Array, ...], n1: int, basis: Array
    ) -> tuple[Features, Features]:
        """The features of the first n1 examples, and of the others, by one evaluation of the model for all.

        Divided are not the features but the smaller derivatives that they are made of, which scans leave in memory.
        Other derivatives are best left to be fused with what they go into.
        """
        differentiate, assemble = self.steps(trainable, frozen, basis)
        axes = [None if site.shared else 0 for site in self.sites]
        saved, derivatives = jax.vmap(differentiate, out_axes=(0, axes))(x)
        divided = [(d, d) if axis is None else contract.sides(d, n1) for d, axis in zip(derivatives, axes, strict=True)]
        left, right = (
            jax.vmap(assemble, in_axes=(0, axes))(data, [d[side] for d in divided])
            for side, data in enumerate(contract.sides(saved, n1))
        )
        return left, right

    def differentiate(
        self, trainable: Any, frozen: Any, basis: Array
    ) -> Callable[[tuple[Array, ...]], tuple[list[Any], list[Array]]]:
        """The function of one example to data and derivatives (R, ...) at the sites, of cotangents (D, C, K, *S)."""
        variables = [*jax.tree.leaves(trainable), *jax.tree.leaves(frozen)]
        basis = basis.reshape(-1, *self._shape)
        return lambda example: self._differentiate_once(variables, basis, example)

    def _differentiate(
        self, variables: list[Array], basis: Array, example: tuple[Array, ...]
    ) -> tuple[list[Any], list[Array]]:
        """The same of variables, cotangents (R, *output) and an example."""
        zeros = [jnp.zeros(site.steps + site.perturbed, site.dtype) for site in self.sites]

        def perturbed(zeros: list[Array]) -> tuple[Array, list[Array]]:
            (output,), saved = self.trace.evaluate([*variables, *map(self._batch, example)], zeros)
            return output, saved

        _, vjp, saved = jax.vjp(perturbed, zeros, has_aux=True)
        return saved, jax.vmap(lambda cotangent: vjp(cotangent)[0])(basis)

    def steps(self, trainable: Any, frozen: Any, basis: Array) -> tuple[Callable[..., Any], Callable[..., Features]]:
        """For one example: from its inputs to data and derivatives at the sites, and from these to features."""
        pull_back = self._pull_back([*jax.tree.leaves(trainable), *jax.tree.leaves(frozen)])
        outputs = basis.shape[:3]

        def assemble(saved: list[Any], derivatives: list[Array]) -> Features:
            features: Features = {form: [] for form in contract.FORMS}
            pulled_back = iter(pull_back([self.jacobians(c, saved, derivatives) for c in self._pulled_back]))
            for component in self.components:
                if component.form == "explicit":
                    pulled = component.pulled_back
                    jacobians = next(pulled_back) if pulled else self.jacobians(component, saved, derivatives)
                    features["explicit"] += [(contract.flat(g, outputs),) for g in jacobians]
                elif component.form == "joined":
                    a, d = self.joined_factors(component, saved, derivatives)
                    features["explicit"].append((contract.flat_joined(a, d, outputs),))
                elif component.form == "shared":
                    a, products = self._shared(component, saved, derivatives, outputs)
                    features["shared"].append((a.reshape(-1), contract.applied(products, a)))
                else:
                    a, d = self.joined_factors(component, saved, derivatives)
                    features[component.form].append((a, contract.by_position(d, outputs)))
            features["explicit"] = _merge_small(features["explicit"])
            return features

        return self.differentiate(trainable, frozen, basis), assemble

    @property
    def scans(self) -> bool:
        """Whether there are sites in scans."""
        return any(site.steps for site in self.sites)

    def _batch(self, example: Array) -> Array:
        return example if self._coupled else example[None]

    def jacobians(self, component: Component, saved: list[Any], derivatives: list[Array]) -> list[Array]:
        """G (R, *parameter) for each of the component's groups."""
        return [
            sum(site_jacobians.explicit(self.sites[k], saved[k], derivatives[k]) for k in group)
            for group in component.groups
        ]

    def joined_factors(self, component: Component, saved: list[Any], derivatives: list[Array]) -> tuple[Array, Array]:
        """The factors of all sites of the component's one parameter, with the positions of one after the other's."""
        (group,) = component.groups
        parts = zip(*(site_jacobians.factors(self.sites[k], saved[k], derivatives[k]) for k in group), strict=True)
        axes = (-1 if component.form == "index" else -2, -2)
        a, d = (jnp.concatenate(part, axis) for part, axis in zip(parts, axes, strict=True))
        if component.bias is not None:
            a = jnp.concatenate([a, jnp.ones_like(a[..., :1])], -1)
        return a, d

    def _shared(
        self, component: Component, saved: list[Any], derivatives: list[Array], outputs: tuple[int, int, int]
    ) -> tuple[Array, Array]:
        """Data (B, S, I) of the component's one site, and the products (D, K, K, B, S, S) of the derivative for it."""
        ((k,),) = component.groups
        a, d = self.joined_factors(component, saved, derivatives)
        products = contract.shared_products(d, outputs)
        return site_jacobians.folded(self.sites[k], saved[k], products) or (a, products)

    @property
    def _pulled_back(self) -> list[Component]:
        return [component for component in self.components if component.pulled_back]

    def _pull_back(self, variables: list[Array]) -> Callable[[list[list[Array]]], list[list[Array]]]:
        """The derivative of all prefixes, transposed: G of variables from G of groups, for each pulled-back component.

        One for all together, because tracing the prefix of one goes through the whole model.
        """
        components = self._pulled_back

        def prefixes(leaves: list[list[Array]]) -> list[list[Array]]:
            replaced = list(variables)
            for component, values in zip(components, leaves, strict=True):
                for k, value in zip(component.leaves, values, strict=True):
                    replaced[k] = value
            operands = self.trace.operands(replaced)
            return [[operands[group[0]] for group in component.groups] for component in components]

        if not components:
            return lambda jacobians: []
        operands, vjp = jax.vjp(prefixes, [[variables[k] for k in component.leaves] for component in components])
        return jax.vmap(lambda jacobians: vjp(jax.tree.map(lambda g, w: g.astype(w.dtype), jacobians, operands))[0])

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
            shape = self.joined_shape(groups[0]) if alone and counts else None
            folded = self._folded_shape(groups[0]) if shape else None
            form = self._form(groups[0], shape, folded, counts) if shape and counts else "explicit"
            folded = folded if form == "shared" else None
            components.append(Component(tuple(groups), tuple(sorted(leaves)), form, not alone, shape, folded=folded))
        return self._with_biases(components)

    def joined_shape(self, group: tuple[int, ...]) -> Shape | None:
        """The shape of the factors of sites of one parameter together, None if they are not of one kind."""
        shapes = [self.shapes[k] for k in group]
        kinds = {
            (self.sites[k].rule.name, s and (s.batch, s.data, s.derivative)) for k, s in zip(group, shapes, strict=True)
        }
        if len(kinds) > 1 or shapes[0] is None:
            return None
        return dataclasses.replace(shapes[0], positions=sum(s.positions for s in shapes if s is not None))

    def _form(self, group: tuple[int, ...], joined: Shape, folded: Shape | None, counts: tuple[int, int]) -> str:
        """The cheapest form of sites of one parameter, which is its variable."""
        index = self.sites[group[0]].rule is rules.EMBEDDING
        explicit = index or site_jacobians.whole(self.sites[group[0]])
        costs = {
            "explicit" if explicit else "joined": joined.explicit_cost(*counts, self.axes),
            "index" if index else "gram": joined.gram_cost(*counts, self.axes, index=index),
        }
        if folded is not None:
            costs["shared"] = joined.shared_cost(*counts, self.axes, folded)
        return min(costs, key=lambda form: costs[form])

    def _folded_shape(self, group: tuple[int, ...]) -> Shape | None:
        """The shape of the data that the shared form would be of, None if there is none."""
        shape, site = self.shapes[group[0]], self.sites[group[0]]
        if shape is None or len(group) > 1 or not site.shared or site.rule is rules.EMBEDDING:
            return None
        data = aval(site.eqn.invars[1 - site.operand])
        folded = jax.eval_shape(
            lambda data, products: site_jacobians.folded(site, data, products),
            jax.ShapeDtypeStruct(data.shape, data.dtype),
            jax.ShapeDtypeStruct((shape.batch, shape.positions, shape.positions), site.dtype),
        )
        if folded is None:
            return shape
        return dataclasses.replace(shape, positions=folded[0].shape[1], data=folded[0].shape[2])

    def _with_biases(self, components: list[Component]) -> list[Component]:
        """Biases made rows of the parameters of the products that they are added to, where that is cheaper."""
        alone = {c.groups[0][0]: c for c in components if not c.pulled_back and c.groups == (c.groups[0][:1],)}
        rows, gone = {}, set()
        for product, bias in biases.of_products(self.trace).items():
            site, row = alone.get(product), alone.get(bias)
            if site is None or site.shape is None or row is None or row in gone:
                continue
            if site.form not in ("joined", "gram") and site.folded != site.shape:
                continue
            if self.axes.count * site.shape.derivative >= site.shape.data:  # the data is copied, D is not read again
                shape = dataclasses.replace(site.shape, data=site.shape.data + 1)
                folded = shape if site.form == "shared" else None
                rows[site] = dataclasses.replace(site, shape=shape, bias=bias, folded=folded)
                gone.add(row)
        return [rows.get(c, c) for c in components if c not in gone]


def _merge_small(explicit: list[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
    """Explicit features (D, K, M), with those of few numbers, as of biases and scales, joined."""

    def is_small(g: Array) -> bool:
        return math.prod(size for size in g.shape if isinstance(size, int)) < SMALL  # a symbolic one counts as 1

    small = [g for (g,) in explicit if is_small(g)]
    large = [(g,) for (g,) in explicit if not is_small(g)]
    return [*large, (jnp.concatenate(small, -1),)] if small else large
