"""The layerwise NTK: features of each example at every site, contracted site by site."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from exporter.ntk.layerwise import contract
from exporter.ntk.layerwise.costs import SiteCost, features_bytes, site_costs
from exporter.ntk.layerwise.features import ApplyFn, ExampleFeatures, Features
from exporter.ntk.layerwise.hoisting import independent_first
from exporter.ntk.layerwise.lowering import Lowering, by_platform, of_all, of_platforms

Array = Any

# Of models with more sites XLA's compilation takes as long as a hundred of their kernels: both sides' features by one
# program compile in 60 to 75 % of the time, and run up to 10 % slower.
MANY_SITES = 64
BEGIN = 1e6  # operations that take as long as those of a site take to begin, on a CPU 0.05 to 0.1 ms
ASSUMED = 16  # examples of a side whose number is symbolic


class LayerwiseParts:
    """The kernel in two steps, so that features of an example are computed once for all pairs that it is in.

    Lowered for several platforms, each gets the convolutions that it is fast at.

    Attributes:
      traced: the model.
      passes: the kernel is the sum of the contractions of so many passes' features, each of some of the outputs.
      replaced: paths of the variables in whose place features take those that `replace` makes of them.
      variable_specs: shapes and dtypes of the trainable and the frozen variables that features take, by path.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        x: tuple[Any, ...],
        *,
        counts: tuple[int, int],
        trace_axes: Sequence[int],
        diagonal_axes: Sequence[int],
        narrow: bool = True,
        platforms: Sequence[str] | None = None,
    ) -> None:
        """Traces the model and chooses the forms of features, those that cost least for `counts` examples a side.

        The arguments are those of `ExampleFeatures`, and the platforms that are lowered for, None for any.
        """

        x = tuple(jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) for a in x)
        specs = jax.tree.map(lambda v: jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)), (trainable, frozen))
        self._arguments = (specs, x)
        traced = ExampleFeatures(
            apply_fn,
            trainable,
            frozen,
            x,
            counts=counts,
            trace_axes=trace_axes,
            diagonal_axes=diagonal_axes,
            how=of_all(platforms),
            narrow=narrow,
        )
        self._take(traced, 1)
        narrowed = traced.narrowed
        paths = [path for variables in specs for path in sorted(variables)]
        self.replaced: tuple[str, ...] = () if narrowed is None else tuple(paths[k] for k in narrowed.replaced)
        others = jax.eval_shape(self.replace, {**specs[0], **specs[1]}) if self.replaced else {}
        trainable, frozen = ({path: others.get(path, v) for path, v in part.items()} for part in specs)
        self.variable_specs: tuple[Mapping[str, Any], Mapping[str, Any]] = trainable, frozen

    def _take(self, traced: ExampleFeatures, passes: int) -> None:
        self.traced = traced
        axes = traced.axes
        self._outputs = -(-axes.traced // passes) if axes.diagonal == 1 else axes.traced
        self.passes = -(-axes.traced // self._outputs)
        self.__dict__.pop("_of_one", None)

    def fitted(self, counts: tuple[int, int], passes: int = 1) -> LayerwiseParts:
        """The same kernel, not traced again, in the forms best for `counts` examples a side and in so many passes.

        There are fewer passes if there are not so many traced outputs, and one if there are diagonal ones.
        """
        parts = copy.copy(self)
        parts._take(self.traced.fitted(counts), passes)
        return parts

    def replace(self, variables: Mapping[str, Array]) -> dict[str, Array]:
        """Variables of a narrower last layer (see `heads`), in the place of the `replaced` ones, of these.

        Both sides of a kernel need the same: rounding may give another program another factor of W Wᵀ.
        """
        narrowed = self.traced.narrowed
        assert narrowed is not None
        paths = [path for part in self._arguments[0] for path in sorted(part)]
        leaves = narrowed.variables([variables.get(path) for path in paths])
        return {paths[k]: leaves[k] for k in narrowed.replaced}

    @property
    def outputs(self) -> int:
        """Of one example, all passes' together."""
        return self.traced.axes.count

    @property
    def bytes_at_work(self) -> int:
        """Of the derivatives and features of one example's outputs of a pass, counted from shapes."""
        return self._outputs_of_pass * self.traced.bytes_of_output

    @property
    def features_bytes(self) -> int:
        """Of the features of one example in a pass, counted from shapes."""
        return features_bytes(self.traced, self._outputs_of_pass)

    @property
    def _outputs_of_pass(self) -> int:
        return self._outputs * self.traced.axes.diagonal * self.traced.axes.kept

    @property
    def fewest_bytes_at_work(self) -> int:
        """The same of as few outputs as a kernel can be computed of at a time."""
        return self.traced.axes.together * self.traced.bytes_of_output

    @property
    def deep(self) -> bool:
        """Whether there are so many sites that programs take long to compile, and small blocks long to run."""
        return len(self.traced.sites) > MANY_SITES

    @property
    def overhead(self) -> float:
        """How many examples' work takes as long as a program takes without any."""
        costs = self.costs()
        return BEGIN * len(costs) / max(1.0, sum(cost.example_flops for cost in costs))

    def costs(self) -> list[SiteCost]:
        """What each site costs, in one pass."""
        return site_costs(self.traced)

    def features(self, trainable: Any, frozen: Any, x: tuple[Array, ...], number: Any = 0) -> Features:
        """What pass `number` of the kernel needs to know of each example: a pytree of (n, ...)."""
        return self.traced.compute(trainable, frozen, x, self._basis(number))

    def specs(self, n: int) -> Features:
        """Shapes and dtypes of the features of n examples."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype), self._of_one)

    @functools.cached_property
    def _of_one(self) -> Features:
        def compute(trainable: Any, frozen: Any, x: tuple[Array, ...]) -> Features:
            return self.traced.compute(trainable, frozen, x, self._basis(0))

        return jax.eval_shape(compute, *self.variable_specs, self._arguments[1])

    def _basis(self, number: Any) -> Array:
        """The cotangents of the outputs of a pass."""
        traced = None if self.passes == 1 else (number * self._outputs, self._outputs)
        return self.traced.axes.basis(self.traced.dtype, traced=traced)

    def contract(self, trainable: Any, frozen: Any, features1: Features, features2: Features) -> Array:
        """The part (n1, n2, ...) of the kernel that is of a pass with these features; the variables are not used."""
        axes = self.traced.axes
        return axes.arrange(contract.contract(features1, features2), axes)


def layerwise_kernel_fn(
    apply_fn: ApplyFn,
    *,
    trace_axes: Sequence[int],
    diagonal_axes: Sequence[int],
    coupled: bool = False,
    memory: int = 1 << 30,
    platforms: Sequence[str] | None = None,
) -> Callable[..., Array]:
    """kernel(trainable, frozen, x1, x2) = J(x1) J(x2)ᵀ as `exporter.ntk.kernel.kernel_fn` describes it.

    Lowered for several platforms, each gets the convolutions that it is fast at. With x2 None it is the kernel of x1
    with itself, whose features are computed once. If the derivatives of all outputs would take more than `memory`
    bytes, or on CPUs much more than fits caches, they are made for some outputs at a time. Numbers of examples may be
    symbolic; what depends on them is then decided for ASSUMED ones. `platforms` are those that are lowered for, None
    for any: of CPUs alone, or others, tracing takes half the time.
    """

    def kernel(trainable: Any, frozen: Any, x1: tuple[Array, ...], x2: tuple[Array, ...] | None = None) -> Array:
        if coupled:  # the whole batch is the one example, and its batch axis an axis of the output like others
            x1, x2 = tuple(a[None] for a in x1), None if x2 is None else tuple(a[None] for a in x2)
        counts = None if coupled else (_count(x1), _count(x1 if x2 is None else x2))

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
                narrow=True,
            )

        def computed_by(how: Lowering) -> Array:
            left = features(x1, how)
            right = left if x2 is None or not coupled else features(x2, how)
            return _kernel(left, right, trainable, frozen, x1, x2, counts=counts, memory=memory, how=how)

        total = by_platform(computed_by, of_platforms(platforms))
        return total[0, 0] if coupled else total

    return kernel


def _count(x: tuple[Array, ...]) -> int:
    """How many examples to decide for: as many as there are, or if that is symbolic some."""
    n = x[0].shape[0]
    return n if isinstance(n, int) else ASSUMED


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
    how: Lowering,
) -> Array:
    trainable, frozen = left.variables_of(trainable, frozen)
    together = counts is not None and x2 is not None and _better_together(left)
    called = how.called if _large_and_alike(left, counts) else jax.jit
    features1 = called(left.compute)
    features2 = features1 if left is right else called(right.compute)  # traced once if both sides are alike

    def of_outputs(basis1: Array, basis2: Array) -> Array:
        """The kernel (n1, n2, D, K1, K2) of the outputs of these cotangents."""
        if together:
            x, n1 = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x1, x2), x1[0].shape[0]
            if left.scans:
                return contract.contract(*left.compute_sides(trainable, frozen, x, n1, basis1))
            return contract.contract_sides(left.compute(trainable, frozen, x, basis1), n1)
        f1 = features1(trainable, frozen, x1, basis1)
        f2 = f1 if x2 is None else features2(trainable, frozen, x2, basis2)
        return contract.contract(f1, f2)

    sides = (left, right)
    if counts is None:
        total = of_outputs(*(side.axes.basis(side.dtype) for side in sides))
    else:
        at_a_time = sum(counts) if together else max(counts)
        outputs = min(left.outputs_at_once(sum(counts), memory), left.outputs_in_cache(at_a_time))
        total = _in_chunks(of_outputs, sides, outputs)
    return left.axes.arrange(total, right.axes)


def _better_together(features: ExampleFeatures) -> bool:
    """Whether one batch of both sides' examples is better than a program for each: of deep models, and of scans."""
    return len(features.sites) > MANY_SITES or features.scans


def _large_and_alike(features: ExampleFeatures, counts: tuple[int, int] | None) -> bool:
    """Whether both sides have as many examples, and so many that their derivatives outgrow the cache."""
    return counts is not None and counts[0] == counts[1] and features.beyond_cache(counts[0])


def _in_chunks(fn: Callable[..., Array], sides: Sequence[ExampleFeatures], outputs_at_once: int) -> Array:
    """fn of both sides' bases (D, C, K, *S): (n1, n2, D, K, K), with not many more than so many outputs at once.

    What does not depend on the outputs, as the forward pass, is computed once.

    Diagonal outputs are done some at a time, or else traced ones summed some at a time. Kept ones need each other.
    """
    axes = sides[0].axes
    if axes.diagonal > 1:
        name, total, others = "diagonal", axes.diagonal, axes.traced * axes.kept
    else:
        name, total, others = "traced", axes.traced, axes.kept
    chunks = -(-total // max(1, outputs_at_once // others))
    size = -(-total // chunks)

    def of_chunk(number: Any) -> Array:
        part = {} if chunks == 1 else {name: (number * size, size)}
        return fn(*(side.axes.basis(side.dtype, **part) for side in sides))

    if chunks == 1:
        return of_chunk(0)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    of_chunk = independent_first(of_chunk, number)
    numbers = jnp.arange(-(-total // size), dtype=number.dtype)
    if name == "traced":
        specs = jax.eval_shape(of_chunk, number)
        zero = jnp.zeros(specs.shape, specs.dtype)
        return lax.scan(lambda total, number: (total + of_chunk(number), None), zero, numbers)[0]
    parts = jnp.moveaxis(lax.map(of_chunk, numbers), 0, 2)  # (n1, n2, chunks, size, K, K)
    return parts.reshape(*parts.shape[:2], -1, *parts.shape[4:])[:, :, :total]
