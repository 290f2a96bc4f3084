"""What each signature computes: a few XLA programs, and the graph that serves them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from exporter.compat.jax_names import enable_x64
from exporter.functionalize import FunctionalModel, TensorSpec
from exporter.functionalize.frozen_part import FrozenPart
from exporter.graph import serve_graph
from exporter.graph.kernel_module import Compute, References
from exporter.graph.lowering import lower
from exporter.graph.packing import Packing
from exporter.graph.turns import LONG, in_turn
from exporter.ntk.kernel import KernelFn, KernelParts, coupled_diagonal_fn, diagonal_fn
from exporter.ntk.layerwise.lowering import as_on_platforms
from exporter.ntk.layerwise.projection import Projection
from exporter.plan.schedule import Schedule


def functions_by_blocks(
    model: FunctionalModel,
    schedule: Schedule,
    names: Sequence[str],
    *,
    swap: Sequence[int],
    platforms: Sequence[str],
    precision: str,
    flops: float,
    projected: Projection | None = None,
    lowered: Callable[[], object] = lambda: None,
) -> tuple[dict[str, Compute], References | None]:
    """How each signature is computed, and kernels with examples whose features are kept, unless it takes passes.

    Args:
      model: the model.
      schedule: its kernel.
      names: of the signatures to build.
      swap: the permutation of the kernel's axes that exchanges x1 and x2.
      platforms: the platforms to lower for.
      precision: of matrix products, or float64 for everything.
      flops: floating point operations for an example.
      projected: what `ntk_features` returns.
      lowered: called after each function.
    """
    program = functools.partial(_Program, platforms=platforms, precision=precision, flops=flops, lowered=lowered)
    parts = schedule.parts
    of_model, of_kernel = (
        Packing(variables, batch_axes=0) for variables in ((model.trainable, model.frozen), parts.variable_specs)
    )
    x = tuple(jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for spec in model.inputs)
    sizes, passes = schedule.blocks.sizes, parts.passes
    kernel, features, packed = _kernel(schedule, of_kernel, schedule.blocks.contracted, program, x, swap)
    diagonal = program(packed.diagonal, of_kernel.specs, packed.specs, rowwise=True)
    replace = _replacement(parts, model, program)

    def output(variables: Any, x: Any) -> Any:
        trainable, frozen = of_model.unpack(variables)
        return model.apply_fn(trainable, frozen, x)

    forward = program(as_on_platforms(output, platforms), of_model.specs, x, rowwise=True)

    def diagonal_of_inputs(variables: Any, x: Any) -> Any:
        def of_pass(variables: Any) -> Any:
            return diagonal(_without_pass(variables, passes), features(variables, x))

        zero = tf.zeros([x[0].shape[0], *diagonal.results(1).shape[1:]], diagonal.results(1).dtype)
        return serve_graph.sum_over_passes(passes, of_pass, variables, zero)

    diagonals = serve_graph.Rowwise(sizes, diagonal_of_inputs, diagonal.results(1), overhead=parts.overhead)
    forwards = serve_graph.Rowwise(
        sizes, lambda variables, x: forward(variables, tuple(x)), forward.results(1), overhead=parts.overhead
    )

    def projected_of_inputs() -> serve_graph.Rowwise:
        assert projected is not None
        most = schedule.projected[-1] if schedule.projected_at_once else None

        def features(variables: Any, x: Any) -> Any:
            trainable, frozen = of_model.unpack(variables)
            return projected(trainable, frozen, x, most)

        row = jax.ShapeDtypeStruct((1, *projected.shape), projected.dtype)
        project = program(features, of_model.specs, x, results=row, rowwise=schedule.projected_at_once)
        return serve_graph.Rowwise(
            schedule.projected, lambda variables, x: project(variables, tuple(x)), project.results(1)
        )

    def of(fn: Callable[..., tf.Tensor]) -> Compute:
        return lambda params, frozen, *sides: fn(of_kernel.pack(replace(params, frozen), tf), *sides)

    def of_whole_model(fn: Callable[..., tf.Tensor]) -> Compute:
        return lambda params, frozen, x: fn(of_model.pack((params, frozen), tf), x)

    pair = of(kernel.pairwise)
    functions: dict[str, Compute] = {
        "ntk": pair,
        "ntk_with_params": pair,
        "ntk_symmetric": of(kernel.symmetric),
        "ntk_diagonal": of(diagonals),
        "forward": of_whole_model(forwards),
    }
    if "ntk_features" in names:
        functions["ntk_features"] = of_whole_model(projected_of_inputs())
    references = None
    if passes == 1:
        kept = [tf.TensorSpec([None, *s.shape[1:]], np.dtype(s.dtype)) for s in jax.tree.leaves(packed.specs)]
        references = References(of(kernel.rows), of(kernel.against), kept)
    return {name: functions[name] for name in names}, references


def _replacement(
    parts: KernelParts, model: FunctionalModel, program: Callable[..., _Program]
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """From the model's variables to those that the kernel is computed of, once for each request."""
    if not parts.replaced:
        return lambda params, frozen: (params, frozen)

    def taken(params: Any, frozen: Any) -> dict[str, Any]:
        return {path: {**params, **frozen}[path] for path in parts.replaced}

    run = program(parts.replace, taken(model.trainable, model.frozen), flops=None)

    def replace(params: Any, frozen: Any) -> tuple[Any, Any]:
        others = run(taken(params, frozen))
        params, frozen = ({path: others.get(path, v) for path, v in part.items()} for part in (params, frozen))
        return params, frozen

    return replace


class _PackedParts:
    """A kernel's parts as functions of packed variables and features.

    Attributes:
      specs: the packed features of one example, as shapes and dtypes.
    """

    def __init__(self, parts: KernelParts, variables: Packing) -> None:
        self._parts, self._variables = parts, variables
        self._features = Packing(parts.specs(1), batch_axes=1)
        self.specs = self._features.specs

    def features(self, variables: Any, x: Any, *number: Any) -> Any:
        trainable, frozen = self._variables.unpack(variables)
        return self._features.pack(self._parts.features(trainable, frozen, x, *number), jnp)

    def contract(self, variables: Any, *sides: Any) -> Any:
        return self._parts.contract(*self._variables.unpack(variables), *map(self._features.unpack, sides))

    def diagonal(self, variables: Any, features: Any) -> Any:
        return diagonal_fn(self._parts)(*self._variables.unpack(variables), self._features.unpack(features))


def _kernel(
    schedule: Schedule,
    packing: Packing,
    contracted: Sequence[int],
    program: Callable[..., _Program],
    x: Any,
    swap: Sequence[int],
) -> tuple[serve_graph.Kernel, Callable[[Any, Any], Any], _PackedParts]:
    """The kernel by contractions of these sizes, its features of (variables, x), and what these are made of."""
    passes, parts = schedule.parts.passes, _PackedParts(schedule.parts, packing)
    number = () if passes == 1 else (jax.ShapeDtypeStruct((), np.int32),)
    made = program(parts.features, packing.specs, x, *number, results=parts.specs, rowwise=True)
    contract = program(parts.contract, packing.specs, parts.specs, parts.specs)

    def features(variables: Any, x: Any) -> Any:
        if passes == 1:
            return made(variables, tuple(x))
        variables, number = variables
        return made(variables, tuple(x), number)

    more = schedule.larger
    larger = None if more is None else _kernel(more, packing, (more.blocks.tile,), program, x, swap)[0]
    kernel = serve_graph.Kernel(
        serve_graph.Rowwise(schedule.blocks.sizes, features, made.results(1), overhead=schedule.parts.overhead),
        lambda variables, *sides: contract(_without_pass(variables, passes), *sides),
        sizes=contracted,
        resident=schedule.blocks.resident,
        result=contract.results(2),
        swap=swap,
        passes=passes,
        larger=larger,
        most=schedule.most,
    )
    return kernel, features, parts


def _without_pass(variables: Any, passes: int) -> Any:
    return variables if passes == 1 else variables[0]


def functions_of_whole_batches(
    model: FunctionalModel, kernel: KernelFn, names: Sequence[str], *, platforms: Sequence[str], precision: str
) -> dict[str, Compute]:
    """The same for a model whose examples influence each other, so that batches are never split.

    Each number of examples is another program, which XLA compiles when it is first asked for.
    """
    program = functools.partial(_Program, platforms=platforms, precision=precision)
    variables = (model.trainable, model.frozen)
    x = tuple(jax.ShapeDtypeStruct((2, *spec.shape[1:]), spec.dtype) for spec in model.inputs)
    sides = [tuple(f"({n}, ...)" for _ in x) for n in ("n1", "n2")]
    pairs = program(kernel, *variables, x, x, polymorphic_shapes=[None, None, *sides])
    diagonal = program(coupled_diagonal_fn(kernel), *variables, x, polymorphic_shapes=[None, None, sides[0]])
    forward = program(model.apply_fn, *variables, x, polymorphic_shapes=[None, None, sides[0]])

    def whole(fn: _Program, params: Any, frozen: Any, *sides: Any) -> tf.Tensor:
        def run(*sides: Any) -> tf.Tensor:
            return fn(params, frozen, *map(tuple, sides))

        return serve_graph.whole(run, fn.results(len(sides)), *sides)

    def pair(params: Any, frozen: Any, x1: Any, x2: Any) -> tf.Tensor:
        return whole(pairs, params, frozen, x1, x2)

    functions: dict[str, Compute] = {
        "ntk": pair,
        "ntk_with_params": pair,
        "ntk_symmetric": lambda params, frozen, x: pair(params, frozen, x, x),
        "ntk_diagonal": functools.partial(whole, diagonal),
        "forward": functools.partial(whole, forward),
    }
    return {name: functions[name] for name in names}


class FrozenRows:
    """The frozen part of a model, of any number of examples, in blocks; see `exporter.functionalize.frozen_part`."""

    def __init__(
        self, part: FrozenPart, inputs: Sequence[TensorSpec], sizes: Sequence[int], *, platforms: Any, precision: str
    ) -> None:
        """Lowers it for blocks of these sizes of the model's inputs."""
        self._paths, self._packing = list(part.variables), Packing(dict(part.variables), batch_axes=0)
        x = tuple(jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for spec in inputs)

        def given(variables: Any, x: Any) -> Any:
            return part.apply_fn(self._packing.unpack(variables), x)

        program = _Program(
            as_on_platforms(given, platforms),
            self._packing.specs,
            x,
            rowwise=True,
            platforms=platforms,
            precision=precision,
            flops=part.flops_of_example,
        )
        self._rows = serve_graph.Rowwise(sizes, lambda variables, x: program(variables, tuple(x)), program.results(1))

    def __call__(self, inputs: Sequence[tf.Tensor], frozen: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """What the rest begins with."""
        return list(self._rows(self._packing.pack({path: frozen[path] for path in self._paths}, tf), inputs))


class _Program:
    """A JAX function lowered for TF, to be called with tensors of any sizes, for each of which XLA has a program."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *specs: Any,
        platforms: Sequence[str],
        precision: str,
        polymorphic_shapes: Sequence[Any] | None = None,
        results: Any = None,
        rowwise: bool = False,
        flops: float | None = None,
        lowered: Callable[[], object] = lambda: None,
    ) -> None:
        """Takes the function and, of some numbers of examples, the shapes of its arguments and their own dtypes.

        And if they are known those of its results, so that it need not be traced for them. A `rowwise` one has the
        examples in its second argument and in its results, and is traced for any number of them. Where the `flops`
        for each example of the second argument are known, only long programs take turns; else all do.
        """
        with enable_x64(precision == "float64"):
            self._results = jax.eval_shape(fn, *specs) if results is None else results
        self._rowwise, self._flops = rowwise, flops
        if rowwise:
            polymorphic_shapes = [None, jax.tree.map(lambda _: "(n, ...)", specs[1]), *[None] * len(specs[2:])]
        self._run = lower(
            fn, platforms=platforms, precision=precision, polymorphic_shapes=polymorphic_shapes, lowered=lowered
        )
        self._in_turn = in_turn(self._run)

    def __call__(self, *args: Any) -> Any:
        if self._flops is None:
            return self._in_turn(*args)
        n = tf.nest.flatten(args[1])[0].shape[0]
        results = (self._run if n * self._flops < LONG else self._in_turn)(*args)
        if not self._rowwise:
            return results
        return tf.nest.map_structure(lambda a: tf.ensure_shape(a, [n, *a.shape[1:]]), results)

    def results(self, sides: int) -> Any:
        """Shapes and dtypes of the results, the first so many axes being numbers of examples."""
        return jax.tree.map(
            lambda r: tf.TensorSpec([*[None] * sides, *r.shape[sides:]], np.dtype(r.dtype)), self._results
        )
