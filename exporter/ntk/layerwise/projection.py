"""Features of a few thousand numbers: each example's Jacobian at every site, projected as soon as it is written out.

The projection is `exporter.ntk.count_sketch`'s: signs and shifts are `drawn`, and Jacobians added to `buffers`, one for
each output, whose own shift is the last step.

Sites follow each other from the last to the first, as reverse mode gives their derivatives, so that no more of these
and of the Jacobian need be in memory than those of the sites at hand.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise import contract, rules, site_jacobians
from exporter.ntk.layerwise.buffers import BLOCK, Accumulator, block_of, folded
from exporter.ntk.layerwise.drawn import Drawn, draw
from exporter.ntk.layerwise.features import Component, ExampleFeatures
from exporter.ntk.layerwise.hoisting import independent_first
from exporter.ntk.layerwise.lowering import Lowering, by_platform
from exporter.ntk.layerwise.prefixes import Prefixes

Array = Any

IN_CACHE = 1 << 19  # bytes of buffers, so that adding a row to each does not go through memory
TOGETHER = 64 << 20  # bytes of the derivatives of sites whose Jacobians are made example by example


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """Outputs, of which some are projected at a time, in arrays (count,) or (chunks, count).

    Attributes:
      position: in the model's flat output; -1 for none.
      traced: number among the traced outputs.
      kept: number among the others.
      group: of D traced outputs, the same for all in a chunk.
    """

    position: Any
    traced: Any
    kept: Any
    group: Any


class Projection:
    """Features (n, ..., D) of examples, whose products approximate the kernel: a random projection of their Jacobians.

    Attributes:
      dtype: of the features.
    """

    def __init__(
        self,
        features: ExampleFeatures,
        sketch: Sketch,
        *,
        trace_axes: Sequence[int],
        memory: int,
        hows: Collection[Lowering],
    ) -> None:
        """Takes a traced model.

        Args:
          features: the model, its sites and their order.
          sketch: the projection.
          trace_axes: axes of the output, counted with the batch axis and not negative, over which features are summed.
          memory: bytes that derivatives may take; of more outputs they are made for some at a time.
          hows: how the platforms are lowered for: where they have a cache, examples, and the rows of variables, are
            taken one after the other.
        """
        self._features, self._sketch, self._memory, self._hows = features, sketch, memory, hows
        jaxpr = features.trace.jaxpr
        specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
        self._shapes = [spec.shape for spec in specs[: len(features.variables)]]
        self.dtype = jnp.promote_types(features.dtype, jnp.float32)
        # Of each variable, the number of its first row.
        self._first = [0, *itertools.accumulate(sketch.rows(shape) for shape in self._shapes)]
        self._prefixes = Prefixes(features.trace, specs[: -features.inputs])
        self._output_shape = features.trace.jaxpr.outvars[0].aval.shape[1:]
        self._traced_axes = [a - 1 for a in sorted(trace_axes)]
        self._kept_shape = [n for a, n in enumerate(self._output_shape) if a not in self._traced_axes]
        self._order = sorted(_groups_alone(features), key=lambda c: -max(_sites(c)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example's features: the axes of the output that are not traced, and D."""
        return (*self._kept_shape, self._sketch.dimensions)

    def bytes_at_work(self, examples: int) -> int:
        """Of derivatives, Jacobians and buffers for so many examples and one output at a time, counted from shapes."""
        sites = self._features.sites
        derivative = max((math.prod(site.steps + site.perturbed) for site in sites), default=0)
        each = 3 * derivative + 4 * self._sketch.dimensions
        return self.dtype.itemsize * (examples * each + 3 * self._largest_written)

    @functools.cached_property
    def _largest_written(self) -> int:
        """How many numbers of one output's Jacobian by a variable are written out at a time, at most."""
        sizes = [(c, max(math.prod(self._shapes[k]) for k in c.leaves)) for c in self._order]
        block = TOGETHER // self.dtype.itemsize
        return max((min(size, block) if self._in_blocks(c) else size for c, size in sizes), default=0)

    def _in_blocks(self, component: Component) -> bool:
        """Whether a component's Jacobian is never written out, as it would not fit; on CPUs others are not either."""
        leaf = component.leaves[0]
        too_large = 3 * self.dtype.itemsize * math.prod(self._shapes[leaf]) > self._memory
        return too_large and self._is_variable(component) and self._block(component, 1, at_once=False) > 0

    def __call__(self, trainable: Any, frozen: Any, x: tuple[Array, ...], most: int | None = None) -> Array:
        """The features of examples x; if their number is symbolic of at most `most`, which are computed together."""
        if most is not None:
            return self._compute(trainable, frozen, x, most, self._hows)
        n = x[0].shape[0]
        if n == 0:
            return jnp.zeros((0, *self.shape), self.dtype)

        def by_parts(*hows: Lowering) -> Array:
            part = self._examples_in_cache(n, *hows)
            return _by_parts(lambda *x: self._compute(trainable, frozen, x, part, hows), part, *x)

        together = self._examples_in_cache(n, *self._hows) == n
        return by_parts(*self._hows) if together else by_platform(by_parts, self._hows)

    def with_kernel(self, trainable: Any, frozen: Any, x: tuple[Array, ...]) -> tuple[Array, Array]:
        """The features of a few examples, and their kernel (n, n), of the same derivatives; all outputs are traced."""
        return self._compute(trainable, frozen, x, x[0].shape[0], self._hows, kernel=True)

    def _compute(
        self,
        trainable: Any,
        frozen: Any,
        x: tuple[Array, ...],
        most: int,
        hows: Collection[Lowering],
        *,
        kernel: bool = False,
    ) -> Any:
        n = x[0].shape[0]
        chunks = self._chunks(max(1, self._memory // self.bytes_at_work(most)))
        kept = math.prod(self._kept_shape)
        variables = [*jax.tree.leaves(trainable), *jax.tree.leaves(frozen)]

        def of_outputs(outputs: _Outputs) -> tuple[Array, Array]:
            return self._of_outputs(trainable, frozen, variables, x, outputs, most, hows, kernel=kernel)

        def added(totals: tuple[Array, Array], parts: tuple[Array, Array], outputs: _Outputs) -> tuple[Array, Array]:
            return self._with_output_shifts(totals[0], parts[0], outputs), totals[1] + parts[1]

        zeros = jnp.zeros((n, kept, 2 * self._sketch.dimensions), self.dtype)
        totals = zeros, jnp.zeros((n, n) if kernel else (), self.dtype)
        if len(chunks.position) == 1:
            outputs = _Outputs(*(a[0] for a in dataclasses.astuple(chunks)))
            totals = added(totals, of_outputs(outputs), outputs)
        else:
            parts = dataclasses.astuple(chunks)
            specs = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in parts]
            fn = independent_first(lambda *arrays: of_outputs(_Outputs(*arrays)), *specs)
            totals, _ = lax.scan(
                lambda totals, arrays: (added(totals, fn(*arrays), _Outputs(*arrays)), None),
                totals,
                tuple(map(jnp.asarray, parts)),
            )
        features = (folded(totals[0]) / math.sqrt(self._traced)).reshape(n, *self.shape)
        return (features, totals[1] / self._traced) if kernel else features

    @property
    def _traced(self) -> int:
        return math.prod(self._output_shape[a] for a in self._traced_axes)

    def _chunks(self, at_once: int) -> _Outputs:
        """All outputs (chunks, count), at most so many in a chunk, which are all of one group."""
        index = np.indices(self._output_shape).reshape(len(self._output_shape), -1)
        sizes = [self._output_shape[a] for a in self._traced_axes]
        kept_axes = [a for a in range(len(self._output_shape)) if a not in self._traced_axes]
        traced, kept = (
            np.ravel_multi_index([index[a] for a in axes], shape) if axes else np.zeros(index.shape[1], int)
            for axes, shape in ((self._traced_axes, sizes), (kept_axes, self._kept_shape))
        )
        group = traced // self._sketch.dimensions
        order = np.lexsort((kept, traced))
        parts: list[np.ndarray] = []
        for g in range(group.max(initial=0) + 1):
            members = order[group[order] == g]
            parts += np.array_split(members, -(-len(members) // at_once))
        count = max(map(len, parts))

        def filled(values: np.ndarray, nothing: int) -> np.ndarray:
            rows = [np.pad(values[part], (0, count - len(part)), constant_values=nothing) for part in parts]
            return np.stack(rows).astype(np.int32)

        groups = np.array([group[part[0]] for part in parts], np.uint32)
        return _Outputs(filled(np.arange(len(order)), -1), filled(traced, 0), filled(kept, 0), groups)

    def _of_outputs(
        self,
        trainable: Any,
        frozen: Any,
        variables: list[Array],
        x: tuple[Array, ...],
        outputs: _Outputs,
        most: int,
        hows: Collection[Lowering],
        *,
        kernel: bool,
    ) -> tuple[Array, Array]:
        """Buffers (n, R, 2 D) of R outputs, before their own shifts; and what these add to the kernel (n, n), or 0."""
        features = self._features
        places = lax.broadcasted_iota(jnp.int32, (1, math.prod(self._output_shape)), 1)
        cotangents = (jnp.asarray(outputs.position)[:, None] == places).astype(features.dtype)
        basis = cotangents.reshape(1, len(outputs.position), 1, 1, *self._output_shape)
        axes = [None if site.shared else 0 for site in features.sites]
        differentiate, assemble = features.steps(trainable, frozen, basis)
        saved, derivatives = jax.vmap(differentiate, out_axes=(0, axes))(x)
        product = jnp.zeros((), self.dtype)
        if kernel:
            of_examples = jax.vmap(assemble, in_axes=(0, axes))(saved, derivatives)
            product = contract.contract(of_examples, of_examples)[:, :, 0, 0, 0]
        drawn = self._draw(outputs)
        n, r = x[0].shape[0], len(outputs.position)

        def added(how: Lowering) -> Array:
            buffers = jnp.zeros((n, r, 2 * self._sketch.dimensions), self.dtype)
            for segment in self._segments(most, r):
                sites = sorted({k for c in segment for k in _sites(c)})
                data = {k: saved[k] for k in sites}
                own = {k: derivatives[k] for k in sites if axes[k] == 0}
                common = {k: derivatives[k] for k in sites if axes[k] is None}
                part = self._examples_at_once(most, r, segment, known=isinstance(n, int), how=how)

                def add(
                    buffers: Array, data: Any, own: Any, segment: Any = segment, common: Any = common, part: int = part
                ) -> Array:
                    accumulator = Accumulator(buffers, drawn, count=r * part, at_once=how.cache is None)
                    for component in segment:
                        self._add(accumulator, component, variables, data, own, common)
                    return accumulator.total()

                buffers = _by_parts(add, n if part == most else part, buffers, data, own)
            return buffers

        return by_platform(added, hows), product

    def of_any_number(self, most: int) -> bool:
        """Whether any number of examples, up to so many, may be computed together: in caches, or the given memory."""
        if any(how.cache is not None for how in self._hows):
            return self._examples_in_cache(most, *self._hows) == most
        largest = max(map(math.prod, self._shapes), default=0)
        return self.dtype.itemsize * math.prod(self._output_shape) * most * largest <= self._memory

    def _examples_in_cache(self, examples: int, *hows: Lowering) -> int:
        """Of how many examples, a divisor of their number, the derivatives of all outputs fit each cache, or one."""
        caches = [how.cache for how in hows if how.cache is not None]
        if not caches:
            return examples
        derivative = max((math.prod(site.steps + site.perturbed) for site in self._features.sites), default=0)
        of_example = self.dtype.itemsize * math.prod(self._output_shape) * derivative
        return _divisor(examples, min(caches) // max(1, of_example))

    def _segments(self, examples: int, outputs: int) -> Iterator[list[Component]]:
        """The components, from the last to the first, in groups whose derivatives are not large together."""
        segment: list[Component] = []
        size = 0
        for component in self._order:
            sites = [self._features.sites[k] for k in _sites(component)]
            numbers = sum(math.prod(site.steps + site.perturbed) for site in sites)
            bytes_of_it = self.dtype.itemsize * examples * outputs * numbers
            if segment and size + bytes_of_it > TOGETHER:
                yield segment
                segment, size = [], 0
            segment, size = [*segment, component], size + bytes_of_it
        if segment:
            yield segment

    def _examples_at_once(
        self, examples: int, outputs: int, segment: Sequence[Component], *, known: bool, how: Lowering
    ) -> int:
        """Of how many examples the Jacobians of some sites are made at a time: a divisor of their number.

        If that is not known, but at most so many, of all or of one.
        """
        largest = max(math.prod(self._shapes[k]) for component in segment for k in component.leaves)
        of_example = self.dtype.itemsize * outputs * (largest + 2 * self._sketch.dimensions)
        at_once = (TOGETHER if how.cache is None else IN_CACHE) // of_example
        if known:
            return _divisor(examples, at_once)
        return examples if how.cache is None or at_once >= examples else 1

    def _add(
        self, total: Accumulator, component: Component, variables: list[Array], data: Any, own: Any, common: Any
    ) -> None:
        """Adds a component's Jacobians, of the examples (n, ...) of `data` and `own`."""
        features = self._features
        site = features.sites[component.groups[0][0]]
        identity = self._is_variable(component)
        first = self._first[component.leaves[0]]
        if identity and component.shape is not None and site.rule is rules.EMBEDDING and _of_rows(site):

            def factors(data: Any, own: Any) -> tuple[Array, Array]:
                return features.joined_factors(component, data, own | common)

            total.add_embedded(first, *jax.vmap(factors)(data, own))
            return

        whole = not identity or (total.at_once and not self._in_blocks(component))
        block = 0 if whole else self._block(component, total.count, at_once=total.at_once)
        bias = None if component.bias is None else min(features.sites[component.bias].param.leaves)
        if block:

            def ordered(data: Any, own: Any) -> tuple[Array, Array]:
                a, d = features.joined_factors(component, data, own | common)
                return a[0], jnp.swapaxes(d[:, 0], 0, 1)

            a, d = jax.vmap(ordered)(data, own)
            total.add_factors(first, a, d, block=block, bias=None if bias is None else self._first[bias])
            return

        def jacobians(data: Any, own: Any) -> list[Array]:
            return _jacobians(features, component, data, own | common)

        # A bias of the output has the same derivative for all examples, and no data.
        made = jax.vmap(jacobians, axis_size=total.examples)(data, own)
        if bias is not None:
            total.add_entries(self._first[bias], made.pop())
        if not identity:
            made = self._prefixes.pulled_back(variables, component.groups[0][0], component.leaves, *made)
        for leaf, jacobian in zip(component.leaves, made, strict=True):
            total.add_entries(self._first[leaf], jacobian)

    def _is_variable(self, component: Component) -> bool:
        """Whether a component's parameter is its variable as it is."""
        return self._features.sites[component.groups[0][0]].param.key == (-1 - component.leaves[0],)

    def _block(self, component: Component, count: int, *, at_once: bool) -> int:
        """How many rows of a component's matrix are made at a time for so many buffers; 0 if it has no matrix."""
        site = self._features.sites[component.groups[0][0]]
        if component.shape is None or not _in_order(site):
            return 0
        bytes_of_entry = self.dtype.itemsize * count
        of_block = TOGETHER if at_once else BLOCK
        return block_of(component.shape.derivative, self._sketch.dimensions, bytes_of_entry, of_block)

    def _with_output_shifts(self, total: Array, buffers: Array, outputs: _Outputs) -> Array:
        """`total` (n, kept, 2 D) with the buffers of outputs added, each shifted by its own amount."""
        d, rows = self._sketch.dimensions, folded(buffers)
        shifts = jnp.asarray(self._sketch.output_shifts[: self._traced].astype(np.int32))
        at, kept = shifts[jnp.asarray(outputs.traced) % d], jnp.asarray(outputs.kept)

        def add(k: Array, total: Array) -> Array:
            start = (np.int32(0), kept[k], at[k])  # all of one type, with 64-bit integers too
            part = lax.dynamic_slice_in_dim(rows, k, 1, 1)
            return lax.dynamic_update_slice(total, lax.dynamic_slice(total, start, part.shape) + part, start)

        return lax.fori_loop(0, rows.shape[1], add, total)

    def _draw(self, outputs: _Outputs) -> Drawn:
        variables = list(zip(self._features.variables, self._shapes, strict=True))
        several = self._traced > self._sketch.dimensions
        group = jnp.asarray(outputs.group, jnp.uint32) if several else np.uint32(0)
        return draw(self._sketch, variables, self._traced, jnp.asarray(outputs.traced), group)


def _groups_alone(features: ExampleFeatures) -> Iterator[Component]:
    """A model's components with each group of sites by itself: what they add up to is linear in each."""
    for component in features.components:
        for group in component.groups:
            site = features.sites[group[0]]
            shape = features.joined_shape(group) if component.bias is None else component.shape
            form = "index" if site.rule is rules.EMBEDDING else "joined"
            leaves = tuple(sorted(site.param.leaves))
            yield Component((group,), leaves, form, False, shape, bias=component.bias)


def _sites(component: Component) -> list[int]:
    bias = [] if component.bias is None else [component.bias]
    return [*(k for group in component.groups for k in group), *bias]


def _of_rows(site: Any) -> bool:
    """Whether an embedding's rows are those of its table in C order."""
    return site.eqn.params["dimension_numbers"].collapsed_slice_dims == (0,)


def _jacobians(features: ExampleFeatures, component: Component, saved: Any, derivatives: Any) -> list[Array]:
    """(R, *parameter) of one example for each of a component's groups, and then that of its bias."""
    site = features.sites[component.groups[0][0]]
    alone = component.bias is None and site_jacobians.whole(site)
    if component.shape is None or site.rule.assemble is None or alone:
        return features.jacobians(component, saved, derivatives)
    a, d = features.joined_factors(component, saved, derivatives)
    g = jnp.einsum("bti,rbtj->rbij", a, d)
    if component.bias is None:
        return [site.rule.assemble(site, g)]
    return [site.rule.assemble(site, g[:, :, :-1]), g[:, :, -1]]


def _in_order(site: Any) -> bool:
    """Whether a site's factors are of a matrix (I, J) whose entries are its parameter's in C order."""
    params, rank = site.eqn.params, len(site.shape)
    if site.rule is rules.DENSE:
        contracted, batch = (axes[site.operand] for axes in params["dimension_numbers"])
        return not batch and site.operand == 1 and tuple(contracted) == tuple(range(len(contracted)))
    if site.rule is rules.CONVOLUTION:
        order = (rank - 1, rank - 2, *range(rank - 2))
        return params["feature_group_count"] == 1 and params["dimension_numbers"].rhs_spec == order
    return False


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`, or 1."""
    return next(size for size in range(min(number, max(1, most)), 0, -1) if number % size == 0)


def _by_parts(fn: Any, size: int, *arrays: Any) -> Array:
    """fn(*arrays), of (n, ...) each, for so many examples at a time.

    On their way they have two axes: of more XLA chooses the order in memory, and then copies them.
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    if size == n:
        return fn(*arrays)
    parts = jax.tree.map(lambda a: a.reshape(n // size, size * math.prod(a.shape[1:])), arrays)

    def of_part(part: Any) -> Array:
        return fn(*jax.tree.map(lambda values, a: values.reshape(size, *a.shape[1:]), part, arrays))

    results = lax.map(of_part, parts)
    return results.reshape(n, *results.shape[2:])
