"""Features of a few thousand numbers: each example's Jacobian at every site, projected as soon as it is written out.

The projection is `exporter.ntk.count_sketch`'s. A row of D entries of a variable's Jacobian is added, with its signs,
to a buffer of 2 D numbers from the row's shift on, which has all cyclic shifts without moving anything twice; its
halves are added up at the end. There is one buffer for each output, whose own shift is the last step.

Sites follow each other from the last to the first, as reverse mode gives their derivatives, so that no more of these
and of the Jacobian need be in memory than those of the sites at hand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from exporter.ntk.count_sketch import BITS, PARITY, ROTATIONS, TURNS, Sketch
from exporter.ntk.layerwise import rules
from exporter.ntk.layerwise.features import Component, ExampleFeatures
from exporter.ntk.layerwise.hoisting import independent_first
from exporter.ntk.layerwise.prefixes import Prefixes

Array = Any

FEW_ROWS = 2  # of a variable that are written out, where a loop over them would have more to begin
IN_CACHE = 1 << 19  # bytes of buffers, so that adding a row to each does not go through memory
BLOCK = 1 << 20  # bytes of a Jacobian, of all outputs, that are made of factors at a time
LARGEST_BLOCK = 32 << 20
TOGETHER = 64 << 20  # bytes of the derivatives of sites whose Jacobians are made example by example


@dataclasses.dataclass(frozen=True)
class _Tables:
    """What is drawn for each row of the variables, one variable's rows after the other's.

    Attributes:
      words: the signs of a row's entries (rows, words).
      shifts: int32 (rows,).
      outputs: the signs of a row for each output (rows, words).
    """

    words: Array
    shifts: Array
    outputs: Array


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
    """Features of examples: a random projection of their Jacobians, for one lowering."""

    def __init__(
        self, features: ExampleFeatures, sketch: Sketch, *, trace_axes: Sequence[int], cache: int | None
    ) -> None:
        """Takes a traced model.

        Args:
          features: the model, its sites and their order.
          sketch: the projection.
          trace_axes: axes of the output, without the batch axis and not negative, over which features are summed.
          cache: bytes of a CPU's, for which examples, and the rows of variables, are taken one after the other; None
            for platforms where all at once is fastest.
        """
        self._features, self._sketch, self._cache = features, sketch, cache
        jaxpr = features.trace.jaxpr
        specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
        self._shapes = [spec.shape for spec in specs[: len(features.variables)]]
        self._dtype = jnp.promote_types(features.dtype, jnp.float32)
        counts = [sketch.rows(shape) for shape in self._shapes]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # row of each variable
        self._prefixes = Prefixes(features.trace, specs[: -features.inputs])
        self._output_shape = features.trace.jaxpr.outvars[0].aval.shape[1:]
        self._traced_axes = [a for a in range(len(self._output_shape)) if a in trace_axes]
        self._kept_shape = [n for a, n in enumerate(self._output_shape) if a not in trace_axes]
        self._order = sorted(_groups_alone(features), key=lambda c: -max(_sites(c)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example's features: the axes of the output that are not traced, and D."""
        return (*self._kept_shape, self._sketch.dimensions)

    def bytes_at_work(self, examples: int, outputs: int) -> int:
        """Of derivatives, Jacobians and buffers for so many examples and outputs at a time, counted from shapes."""
        sites = self._features.sites
        derivative = max((math.prod(site.steps + site.perturbed) for site in sites), default=0)
        largest = max((math.prod(shape) for shape in self._shapes), default=0)
        each = 3 * derivative + 4 * self._sketch.dimensions
        return self._dtype.itemsize * outputs * (examples * each + 3 * largest)

    def compute(self, trainable: Any, frozen: Any, x: tuple[Array, ...], memory: int) -> Array:
        """The features (n, ..., D) of examples, of as many outputs at a time as fit into so many bytes."""
        part = self._examples_in_cache(x[0].shape[0])
        return _by_parts(lambda *x: self._compute(trainable, frozen, x, memory), part, *x)

    def _compute(self, trainable: Any, frozen: Any, x: tuple[Array, ...], memory: int) -> Array:
        n = x[0].shape[0]
        chunks = self._chunks(max(1, memory // self.bytes_at_work(n, 1)))
        kept = math.prod(self._kept_shape)
        variables = [*jax.tree.leaves(trainable), *jax.tree.leaves(frozen)]

        def of_outputs(outputs: _Outputs) -> Array:
            return self._of_outputs(trainable, frozen, variables, x, outputs)

        def added(total: Array, outputs: _Outputs) -> Array:
            return self._with_output_shifts(total, of_outputs(outputs), outputs)

        total = jnp.zeros((n, kept, 2 * self._sketch.dimensions), self._dtype)
        if len(chunks.position) == 1:
            total = added(total, _Outputs(*(a[0] for a in dataclasses.astuple(chunks))))
        else:
            parts = dataclasses.astuple(chunks)
            specs = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in parts]
            fn = independent_first(lambda *arrays: of_outputs(_Outputs(*arrays)), *specs)
            total, _ = lax.scan(
                lambda total, arrays: (self._with_output_shifts(total, fn(*arrays), _Outputs(*arrays)), None),
                total,
                tuple(map(jnp.asarray, parts)),
            )
        folded = self._folded(total) / math.sqrt(self._traced)
        return folded.reshape(n, *self.shape)

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
        self, trainable: Any, frozen: Any, variables: list[Array], x: tuple[Array, ...], outputs: _Outputs
    ) -> Array:
        """Buffers (n, R, 2 D) of R outputs, before their own shifts."""
        features = self._features
        places = lax.broadcasted_iota(jnp.int32, (1, math.prod(self._output_shape)), 1)
        cotangents = (jnp.asarray(outputs.position)[:, None] == places).astype(features.dtype)
        basis = cotangents.reshape(1, len(outputs.position), 1, 1, *self._output_shape)
        axes = [None if site.shared else 0 for site in features.sites]
        differentiate = features.differentiate(trainable, frozen, basis)
        saved, derivatives = jax.vmap(differentiate, out_axes=(0, axes))(x)
        tables = self._tables(outputs)
        n, r = x[0].shape[0], len(outputs.position)
        buffers = jnp.zeros((n, r, 2 * self._sketch.dimensions), self._dtype)
        for segment in self._segments(n, r):
            sites = sorted({k for c in segment for k in _sites(c)})
            data = {k: saved[k] for k in sites}
            own = {k: derivatives[k] for k in sites if axes[k] == 0}
            common = {k: derivatives[k] for k in sites if axes[k] is None}

            def add(buffers: Array, data: Any, own: Any, segment: Any = segment, common: Any = common) -> Array:
                for component in segment:
                    buffers = self._add(buffers, component, variables, data, own, common, tables)
                return buffers

            buffers = _by_parts(add, self._examples_at_once(n, r, segment), buffers, data, own)
        return buffers

    def _examples_in_cache(self, examples: int) -> int:
        """Of how many examples, a divisor of their number, the derivatives of all outputs fit a CPU's cache, or one."""
        if self._cache is None:
            return examples
        derivative = max((math.prod(site.steps + site.perturbed) for site in self._features.sites), default=0)
        of_example = self._dtype.itemsize * math.prod(self._output_shape) * derivative
        return _divisor(examples, self._cache // max(1, of_example))

    def _segments(self, examples: int, outputs: int) -> Iterator[list[Component]]:
        """The components, from the last to the first, in groups whose derivatives are not large together."""
        segment: list[Component] = []
        size = 0
        for component in self._order:
            sites = [self._features.sites[k] for k in _sites(component)]
            numbers = sum(math.prod(site.steps + site.perturbed) for site in sites)
            bytes_of_it = self._dtype.itemsize * examples * outputs * numbers
            if segment and size + bytes_of_it > TOGETHER:
                yield segment
                segment, size = [], 0
            segment, size = [*segment, component], size + bytes_of_it
        if segment:
            yield segment

    def _examples_at_once(self, examples: int, outputs: int, segment: Sequence[Component]) -> int:
        """Of how many examples the Jacobians of some sites are made at a time: a divisor of their number."""
        largest = max(math.prod(self._shapes[k]) for component in segment for k in component.leaves)
        of_example = self._dtype.itemsize * outputs * (largest + 2 * self._sketch.dimensions)
        return _divisor(examples, (TOGETHER if self._cache is None else IN_CACHE) // of_example)

    def _add(
        self,
        buffers: Array,
        component: Component,
        variables: list[Array],
        data: Any,
        own: Any,
        common: Any,
        tables: tuple[_Tables, Array],
    ) -> Array:
        """Buffers with a component's Jacobians added, of the examples (n, ...) of `data` and `own`."""
        features = self._features
        site = features.sites[component.groups[0][0]]
        identity = site.param.key == (-1 - component.leaves[0],)
        if identity and component.shape is not None and site.rule is rules.EMBEDDING and _of_rows(site):

            def factors(data: Any, own: Any) -> tuple[Array, Array]:
                return features.joined_factors(component, data, own | common)

            return self._add_embedded(buffers, component.leaves[0], *jax.vmap(factors)(data, own), tables)

        if identity and self._cache is not None and _in_order(site) and self._block(component, buffers.shape):

            def ordered(data: Any, own: Any) -> tuple[Array, Array]:
                a, d = features.joined_factors(component, data, own | common)
                return a[0], jnp.swapaxes(d[:, 0], 0, 1)

            return self._add_factors(buffers, component, *jax.vmap(ordered)(data, own), tables)

        def jacobians(data: Any, own: Any) -> list[Array]:
            return _jacobians(features, component, data, own | common)

        made = jax.vmap(jacobians)(data, own)
        if component.bias is not None:
            (bias,) = features.sites[component.bias].param.leaves
            buffers = self._add_variable(buffers, bias, made.pop(), tables)
        if not identity:
            made = self._prefixes.pulled_back(variables, component.groups[0][0], component.leaves, *made)
        for leaf, jacobian in zip(component.leaves, made, strict=True):
            buffers = self._add_variable(buffers, leaf, jacobian, tables)
        return buffers

    # ------------------------------------------------------------------------------------------ rows into buffers

    def _add_variable(self, buffers: Array, variable: int, jacobian: Array, tables: tuple[_Tables, Array]) -> Array:
        """Buffers (n, R, 2 D) with the Jacobian (n, R, *shape) of a variable added."""
        return self._add_entries(buffers, int(self._first[variable]), jacobian, tables)

    def _block(self, component: Component, buffers: tuple[int, ...]) -> int:
        """How many rows of a matrix's Jacobian, whole rows of D entries together, are made at a time; 0 for none."""
        assert component.shape is not None
        columns, d = component.shape.derivative, self._sketch.dimensions
        unit = d // math.gcd(d, columns)
        of_unit = self._dtype.itemsize * buffers[0] * buffers[1] * unit * columns
        return 0 if of_unit > LARGEST_BLOCK else unit * max(1, BLOCK // of_unit)

    def _add_factors(
        self, buffers: Array, component: Component, a: Array, d: Array, tables: tuple[_Tables, Array]
    ) -> Array:
        """Buffers with the Jacobian of a matrix added, of factors a (n, T, I) and (n, T, R, J), a block at a time."""
        n, t, i = a.shape
        r, j = d.shape[2:]
        first, size = int(self._first[component.leaves[0]]), self._block(component, buffers.shape)
        d = d.reshape(n, t, r * j)

        def jacobian(a: Array) -> Array:
            g = jnp.einsum("nti,ntq->niq", a, d).reshape(n, -1, r, j)
            return jnp.swapaxes(g, 1, 2)

        def add(k: Array, buffers: Array) -> Array:
            block = jacobian(lax.dynamic_slice_in_dim(a, k * size, size, 2))
            return self._add_entries(buffers, first + k * (size * j // self._sketch.dimensions), block, tables)

        blocks = (i - (component.bias is not None)) // size
        if blocks > 1:
            buffers = lax.fori_loop(0, blocks, add, buffers)
        elif blocks:
            buffers = add(0, buffers)
        rest = jacobian(a[:, :, blocks * size :])
        if component.bias is not None:
            (bias,) = self._features.sites[component.bias].param.leaves
            buffers = self._add_variable(buffers, bias, rest[:, :, -1], tables)
            rest = rest[:, :, :-1]
        return self._add_entries(buffers, first + blocks * size * j // self._sketch.dimensions, rest, tables)

    def _add_entries(self, buffers: Array, first: Any, jacobian: Array, tables: tuple[_Tables, Array]) -> Array:
        """Buffers with a Jacobian (n, R, ...) of entries from a row's begin on added; the row's number is among all."""
        n, r, _ = buffers.shape
        d = self._sketch.dimensions
        jacobian = jacobian.reshape(n, r, -1)
        full, rest = divmod(jacobian.shape[-1], d)

        def add(buffers: Array, row: Array, part: Array) -> Array:
            signed = jnp.where(self._negative(tables, row)[..., : part.shape[-1]], -part, part).astype(buffers.dtype)
            at = (0, 0, tables[0].shifts[row])
            there = lax.dynamic_slice(buffers, at, part.shape)
            return lax.dynamic_update_slice(buffers, there + signed, at)

        def add_full(row: Array, buffers: Array) -> Array:
            return add(buffers, first + row, lax.dynamic_slice_in_dim(jacobian, row * d, d, 2))

        if full > FEW_ROWS and self._cache is None:
            buffers = buffers.at[..., :d].add(self._rolled_sum(jacobian[..., : full * d], first, full, tables))
        elif full > FEW_ROWS:
            buffers = lax.fori_loop(0, full, add_full, buffers)
        else:
            for row in range(full):
                buffers = add_full(row, buffers)
        return add(buffers, first + full, jacobian[..., full * d :]) if rest else buffers

    def _rolled_sum(self, jacobian: Array, first: int, rows: int, tables: tuple[_Tables, Array]) -> Array:
        """(n, R, D) of the full rows of a Jacobian (n, R, rows D), with signs and shifts."""
        d = self._sketch.dimensions
        jacobian = jacobian.reshape(*jacobian.shape[:2], rows, d).astype(self._dtype)
        shifts = tables[0].shifts[first : first + rows]
        negative = jax.vmap(lambda row: self._negative(tables, row), out_axes=1)(first + jnp.arange(rows))
        signed = jnp.where(negative, -jacobian, jacobian)
        places = (jnp.arange(d) - shifts[:, None]) % d
        return jnp.sum(jnp.take_along_axis(signed, places[None, None], 3), 2)

    def _negative(self, tables: tuple[_Tables, Array], row: Array) -> Array:
        """Which entries (R, D) of a row have a negative sign."""
        table, of_outputs = tables
        bits = _bits(table.words[row])[: self._sketch.dimensions]
        return (bits ^ of_outputs[row][:, None]) == 1

    def _add_embedded(
        self, buffers: Array, table: int, index: Array, derivative: Array, tables: tuple[_Tables, Array]
    ) -> Array:
        """Buffers with the Jacobian of an embedding's table added, of its indices (n, T), below 0 for none.

        `derivative` is (n, R, 1, T, J) or (n, R, T, J). The Jacobian, which is 0 but for T rows, is never written out.
        """
        d, width = self._sketch.dimensions, 2 * self._sketch.dimensions
        n, r, _ = buffers.shape
        derivative = derivative.reshape(n, r, index.shape[1], -1)
        j = derivative.shape[-1]
        entry = jnp.maximum(index, 0)[..., None].astype(jnp.uint32) * np.uint32(j) + lax.iota(jnp.uint32, j)
        row, place = entry // np.uint32(d), (entry % np.uint32(d)).astype(jnp.int32)
        row = row.astype(jnp.int32) + int(self._first[table])
        words, of_outputs = tables[0].words, tables[1]
        bits = words[row, place // BITS] >> (place % BITS).astype(jnp.uint32)
        negative = jnp.moveaxis((bits[..., None] ^ of_outputs[row]) & np.uint32(1), -1, 1) == 1  # (n, R, T, J)
        signed = jnp.where(negative, -derivative, derivative).astype(buffers.dtype)
        signed = jnp.where((index >= 0)[:, None, :, None], signed, 0)
        at = place + tables[0].shifts[row]

        def scatter(buffer: Array, at: Array, values: Array) -> Array:
            return buffer.at[:, at.reshape(-1)].add(values.reshape(r, -1))

        return jax.vmap(scatter)(buffers.reshape(n, r, width), at, signed)

    def _with_output_shifts(self, total: Array, buffers: Array, outputs: _Outputs) -> Array:
        """`total` (n, kept, 2 D) with the buffers of outputs added, each shifted by its own amount."""
        d = self._sketch.dimensions
        folded = self._folded(buffers)
        shifts = jnp.asarray(self._sketch.output_shifts[: self._traced].astype(np.int32))
        at = shifts[jnp.asarray(outputs.traced) % d]
        kept = jnp.asarray(outputs.kept)

        def add(k: Array, total: Array) -> Array:
            start = (0, kept[k], at[k])
            part = lax.dynamic_slice_in_dim(folded, k, 1, 1)
            return lax.dynamic_update_slice(total, lax.dynamic_slice(total, start, part.shape) + part, start)

        return lax.fori_loop(0, folded.shape[1], add, total)

    def _folded(self, buffers: Array) -> Array:
        d = self._sketch.dimensions
        return buffers[..., :d] + buffers[..., d:]

    # -------------------------------------------------------------------------------------------------- what is drawn

    def _tables(self, outputs: _Outputs) -> tuple[_Tables, Array]:
        """What is drawn for each row; and the signs, 0 or 1, of the rows (rows, R) for these outputs."""
        sketch, total = self._sketch, int(self._first[-1])
        drawn_by = [sketch.keys(p, s) for p, s in zip(self._features.variables, self._shapes, strict=True)]
        known = np.array([[*signs, *shifts, *of_outputs, 0] for signs, shifts, of_outputs in drawn_by], np.uint32)
        known[:, -1] = self._first[:-1]
        rows = lax.iota(jnp.uint32, total)
        variable = jnp.sum((self._first[1:-1].astype(np.uint32)[:, None] <= rows).astype(jnp.int32), 0)
        drawn = jnp.asarray(known)[variable]
        row = (rows - drawn[:, 6])[:, None]
        several = self._traced > sketch.dimensions
        group = jnp.asarray(outputs.group, jnp.uint32) if several else np.uint32(0)

        # For each row in one go, because what compiles is the generator: blocks of signs, its shift, signs of outputs.
        blocks, pairs = sketch.words // 2, -(-self._traced // (2 * BITS))
        widths = (blocks, 1, pairs)

        def columns(*parts: Array) -> Array:
            return jnp.concatenate([jnp.broadcast_to(p, (total, w)) for p, w in zip(parts, widths, strict=True)], 1)

        block = row * np.uint32(blocks) + lax.iota(jnp.uint32, blocks)
        keys = [columns(*(drawn[:, k : k + 1] for k in (side, side + 2, side + 4))) for side in (0, 1)]
        low, high = _threefry(keys, columns(block, row, row), columns(group, group, lax.iota(jnp.uint32, pairs)))
        words = jnp.stack([low, high], -1).reshape(total, -1)
        shifts = low[:, blocks] % np.uint32(sketch.dimensions)
        table = _Tables(words[:, : 2 * blocks], shifts.astype(jnp.int32), words[:, 2 * blocks + 2 :])
        traced = jnp.asarray(outputs.traced)
        return table, (table.outputs[:, traced // BITS] >> (traced % BITS).astype(jnp.uint32)) & np.uint32(1)


def _threefry(key: Sequence[Array], x: Array, y: Array) -> tuple[Array, Array]:
    """`count_sketch.threefry` in a loop, which compiles in a fraction of the time."""
    keys = jnp.stack([*key, key[0] ^ key[1] ^ PARITY])
    rotations = jnp.asarray(ROTATIONS, jnp.uint32)

    def turn(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, y = state
        for rotation in rotations[k % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (np.uint32(32) - rotation))) ^ x
        return x + keys[(k + 1) % 3], y + keys[(k + 2) % 3] + (k + 1).astype(jnp.uint32)

    low, high = lax.fori_loop(0, TURNS, turn, (x + keys[0], y + keys[1]))
    return low, high


def _bits(words: Array) -> Array:
    """The bits (32 w,) of words (w,), the lowest first."""
    return ((words[:, None] >> lax.iota(jnp.uint32, BITS)) & np.uint32(1)).reshape(-1)


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
    if component.shape is None or site.rule.assemble is None:
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
    """fn(*arrays), of (n, ...) each, for so many examples at a time."""
    n = jax.tree.leaves(arrays)[0].shape[0]
    if size == n:
        return fn(*arrays)
    parts = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), arrays)
    results = lax.map(lambda part: fn(*part), parts)
    return results.reshape(n, *results.shape[2:])
