"""What an export will do, decided before anything is written: which kernel, of what, and how it is computed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.compat.jax_names import enable_x64
from exporter.config import ExportConfig, NtkConfig, check_axes, check_together
from exporter.errors import ExportError
from exporter.functionalize import FunctionalModel, TensorSpec, functionalize
from exporter.load.examples import read_examples
from exporter.ntk.count_sketch import Sketch
from exporter.ntk.kernel import KernelFn, kernel_fn, swap_permutation
from exporter.ntk.layerwise.engine import LayerwiseParts
from exporter.ntk.layerwise.lowering import as_on_platforms
from exporter.ntk.precision import in_float64
from exporter.ntk.sampled_traces import sampled_outputs
from exporter.plan.limits import check_pair
from exporter.plan.schedule import LARGEST_BLOCK
from exporter.plan.signatures import SIGNATURES, input_names, param_names

MOST_OUTPUTS = 4096  # of which features take a pass each, if nobody asked for them in particular
_ROUNDING = 1e-6  # of an output, where the same program is run on the same example among others
_FAITHFUL = 0.05  # float32 arithmetic is nearer to float64, and a wrong conversion further off
_HALF_ROUNDINGS = 16  # so many of half precision are, too: 0.016 of float16, 0.12 of bfloat16


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is exported.

    Attributes:
      model: the model as a function.
      ntk: the kernel's configuration, with axes counted from 0.
      export: what is written.
      coupled: whether examples influence each other, so that batches are never split.
      kernel_shape: of the kernel, with None for numbers of examples.
    """

    model: FunctionalModel
    ntk: NtkConfig
    export: ExportConfig
    coupled: bool
    kernel_shape: tuple[int | None, ...]

    @functools.cached_property
    def differentiated(self) -> FunctionalModel:
        """The model whose kernel is computed: of sampled outputs, if the trace is estimated."""
        if self.ntk.trace_samples is None:
            return self.model
        traced, samples = self.ntk.trace_axes, self.ntk.trace_samples
        model, seed = self.model, self.ntk.trace_seed

        def apply_fn(trainable: Any, frozen: Any, x: Any) -> Any:
            return sampled_outputs(model.apply_fn(trainable, frozen, x), traced, samples, seed)

        sizes = {**dict.fromkeys(traced, 1), traced[0]: samples}
        shape = tuple(sizes.get(axis, size) for axis, size in enumerate(model.output.shape))
        return dataclasses.replace(model, apply_fn=apply_fn, output=dataclasses.replace(model.output, shape=shape))

    @property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """The keyword arguments that say which axes of the output the kernel keeps."""
        return {"trace_axes": self.ntk.trace_axes, "diagonal_axes": self.ntk.diagonal_axes}

    @property
    def swap(self) -> tuple[int, ...]:
        """The permutation of the kernel's axes that exchanges x1 and x2."""
        return swap_permutation(len(self.model.output.shape), **self.axes)

    def kernel(self, implementation: str) -> KernelFn:
        """The kernel, computed by one of the implementations."""
        return kernel_fn(
            self.differentiated.apply_fn,
            implementation=implementation,
            coupled=self.coupled,
            memory=self.export.memory_budget // 2,  # the other half is for the site at work
            platforms=self.export.platforms,
            **self.axes,
        )

    def layerwise_parts(self, block: int, passes: int = 1) -> LayerwiseParts:
        """The layerwise kernel as features and their contraction, best for blocks of so many examples."""
        return self.parts_of_large_blocks.fitted((block, block), passes)

    @functools.cached_property
    def parts_of_large_blocks(self) -> LayerwiseParts:
        """The same for blocks of `LARGEST_BLOCK` examples; the model is traced for it."""
        return self._traced(narrow=True)

    @property
    def all_outputs(self) -> LayerwiseParts:
        """The same with all outputs of a wide last layer, of which a projection is."""
        parts = self.parts_of_large_blocks
        return self._traced(narrow=False) if parts.replaced else parts

    def _traced(self, *, narrow: bool) -> LayerwiseParts:
        model = self.differentiated
        return LayerwiseParts(
            model.apply_fn,
            model.trainable,
            model.frozen,
            self.examples(1),
            counts=(LARGEST_BLOCK, LARGEST_BLOCK),
            trace_axes=self.ntk.trace_axes,
            diagonal_axes=self.ntk.diagonal_axes,
            narrow=narrow,
            platforms=self.export.platforms,
        )

    @property
    def sketch(self) -> Sketch | None:
        """The projection that `ntk_features` returns; None without that signature."""
        if "ntk_features" not in self.export.signatures:
            return None
        return Sketch(self.export.features.dimensions, self.export.features.seed)

    @property
    def features_shape(self) -> tuple[int | None, ...]:
        """The shape of what `ntk_features` returns, with None for the number of examples."""
        kept = (n for axis, n in enumerate(self.model.output.shape) if axis not in self.ntk.trace_axes)
        return (*kept, self.export.features.dimensions)

    @functools.cached_property
    def flops_of_example(self) -> float:
        """Floating point operations for an example's forward pass and the derivatives of all its outputs, by count."""
        if self.coupled:
            return 0.0
        model = self.model
        forward = jax.jit(model.apply_fn).lower(model.trainable, model.frozen, self.examples(1)).cost_analysis() or {}
        engine = sum(cost.example_flops for cost in self.parts_of_large_blocks.costs())
        return forward.get("flops", 0.0) + engine / self.narrowed

    @property
    def narrowed(self) -> float:
        """The part of the outputs that the engine differentiates, if the model has a wide last layer; else 1."""
        if self.coupled:
            return 1.0
        outputs = math.prod(size or 1 for size in self.differentiated.output.shape)
        return self.parts_of_large_blocks.outputs / outputs

    def examples(self, n: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes of the model's inputs for n examples, (n, ...)."""
        return tuple(jax.ShapeDtypeStruct((n, *spec.shape[1:]), spec.dtype) for spec in self.model.inputs)

    def tracing(self) -> AbstractContextManager[Any]:
        """Where the kernel is traced: float64 is enabled there if it is computed in that."""
        return enable_x64(self.ntk.precision == "float64")

    def rows(self) -> list[tuple[str, str]]:
        """What is exported, for people: titles and texts."""
        model = self.model
        frozen = {path: v for path, v in model.all_frozen.items() if path not in model.excluded}
        excluded = {path: v for path, v in model.all_frozen.items() if path in model.excluded}
        rows = [("model", model.name)]
        rows += [("input", _spec(s.name, s.shape, s.dtype)) for s in model.signature_inputs]
        if model.front is not None:
            if model.frozen_part is None:
                rows.append(("in TensorFlow", ", ".join(model.front.operations)))
            else:
                count = len(model.frozen_part.variables)
                rows.append(("frozen part", f"{count} of the frozen variables, in programs of its own, once a request"))
            rows += [("", f"  gives {_spec(s.name, s.shape, s.dtype)}") for s in model.inputs]
        rows += [("output", _spec(s.name, s.shape, s.dtype) + " *" * (s == model.output)) for s in model.outputs]
        for title, variables in (("trainable", model.trainable), ("frozen", frozen), ("excluded", excluded)):
            count = sum(v.size for v in variables.values())
            rows.append((title, f"{len(variables)} variables, {count:,} numbers"))
            rows += [("", f"  {path} {list(v.shape)}") for path, v in variables.items()]
        rows += [
            ("kernel", _spec("ntk", self.kernel_shape, self.kernel_dtype)),
            ("trace", self.trace),
            *([] if self.sketch is None else [("features", self.projection)]),
            ("examples", "coupled: a batch is never split" if self.coupled else "independent of each other"),
            ("implementation", self.ntk.implementation),
            ("precision", self.precision),
            ("platforms", ", ".join(self.export.platforms)),
        ]
        for name in self.export.signatures:
            signature = SIGNATURES[name]
            inputs = [n for side in signature.sides for n in input_names(side, model.signature_inputs)]
            params = list(param_names(model.trainable).values()) if signature.takes_params else []
            shown = inputs + params if len(params) < 4 else [*inputs, f"{len(params)} × params_…"]
            rows.append(("signature", f"{name}({', '.join(shown)}) -> {signature.output}"))
        return rows

    @property
    def traced_outputs(self) -> int:
        """How many outputs the kernel is averaged over."""
        return math.prod(self.model.output.shape[axis] or 1 for axis in self.ntk.trace_axes)

    @property
    def trace(self) -> str:
        """How the trace is computed, for people."""
        samples, count = self.ntk.trace_samples, self.traced_outputs
        if samples is None:
            return f"exact, of {count} outputs" if self.ntk.trace_axes else "none"
        return f"estimated with {samples} random combinations of {count} outputs, seed {self.ntk.trace_seed}"

    @property
    def projection(self) -> str:
        """What `ntk_features` returns, for people."""
        of = f"a random projection of each example's Jacobian, seed {self.export.features.seed}"
        return f"{_spec('features', self.features_shape, self.kernel_dtype)}, {of}{self.projection_warning}"

    @property
    def projection_warning(self) -> str:
        """What is to be said of the number of dimensions; empty if nothing is."""
        if self.sketch is None:
            return ""
        dimensions = self.export.features.dimensions
        exact = self.differentiated_outputs * sum(v.size for v in self.model.trainable.values())
        if dimensions <= exact:
            return ""
        return (
            f"; WARNING: {dimensions:,} numbers, where the exact Jacobian has {exact:,}; set "
            "export.features.dimensions to fewer, or ask for the exact kernel"
        )

    @property
    def differentiated_outputs(self) -> int:
        """How many outputs, or random combinations of outputs, the kernel is averaged over."""
        return self.ntk.trace_samples or self.traced_outputs

    @property
    def precision(self) -> str:
        """What is computed in, for people."""
        half, precision = self.model.half, self.ntk.precision
        if precision == "model":
            return f"model: {half} where the model has it" if half else "model: float32, since it has no half precision"
        return f"{precision}, also where the model has {half}" if half else precision

    @property
    def kernel_dtype(self) -> str:
        """The dtype of the kernel."""
        return self.model.output.dtype


def make_plan(model: Any, ntk: NtkConfig, export: ExportConfig) -> Plan:
    """Functionalizes a model and checks the configuration against it.

    Raises:
      ExportError: the model or the configuration cannot be exported.
    """
    check_together(ntk, export)
    examples = None if export.examples is None else read_examples(export.examples)
    functional = functionalize(
        model,
        trainable=ntk.trainable,
        output=ntk.output,
        keep_half=ntk.precision == "model",
        input_shapes=export.input_shapes,
        examples=examples,
        frozen_apart=ntk.vmap_axes is not None and ntk.precision != "float64",
    )
    rank = len(functional.output.shape)
    trace_axes, diagonal_axes = check_axes(ntk, rank)
    ntk = dataclasses.replace(ntk, trace_axes=trace_axes, diagonal_axes=diagonal_axes)
    kept: list[int | None] = [None, None]
    for axis in range(1, rank):
        if axis not in trace_axes:
            kept += [functional.output.shape[axis]] * (1 if axis in diagonal_axes else 2)
    coupled = ntk.vmap_axes is None
    computed = _in_float64(functional) if ntk.precision == "float64" else functional
    export = dataclasses.replace(export, signatures=_possible(export.signatures, functional, ntk, coupled))
    plan = Plan(computed, ntk, export, coupled, tuple(kept))
    if ntk.trace_samples is not None and ntk.trace_samples >= plan.traced_outputs:
        raise ExportError(
            f"ntk.trace_samples: expected fewer samples than the {plan.traced_outputs} traced outputs, whose exact "
            f"trace costs no more, received {ntk.trace_samples}; set ntk.trace_samples: null."
        )
    kept_axes = [axis for axis in range(1, rank) if axis not in (*trace_axes, *diagonal_axes)]
    with plan.tracing():
        parts = None if coupled or ntk.implementation not in ("auto", "layerwise") else plan.parts_of_large_blocks
    check_pair(functional.output, plan.kernel_shape, plan.kernel_dtype, kept_axes, parts, export.memory_budget)
    _check_on_examples(functional, None if coupled else ntk.vmap_axes, export.verify.rtol)
    return plan


def _in_float64(model: FunctionalModel) -> FunctionalModel:
    """The model with its inputs and variables in float64, and computed in that.

    It is made so before the kernel is derived of it: constants of derivatives, such as 2/√π of erf's, are of its dtype.
    """

    def widened(dtype: str) -> str:
        return "float64" if dtype != "string" and np.issubdtype(np.dtype(dtype), np.floating) else dtype

    def spec(spec: TensorSpec) -> TensorSpec:
        return dataclasses.replace(spec, dtype=widened(spec.dtype))

    x = tuple(jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for spec in model.inputs)
    return dataclasses.replace(
        model,
        apply_fn=in_float64(model.apply_fn, model.trainable, model.frozen, x),
        trainable={path: v.astype(widened(v.dtype.name)) for path, v in model.trainable.items()},
        frozen={path: v.astype(widened(v.dtype.name)) for path, v in model.frozen.items()},
        inputs=tuple(map(spec, model.inputs)),
        signature_inputs=tuple(map(spec, model.signature_inputs)),
        output=spec(model.output),
    )


def _possible(signatures: Sequence[str], model: FunctionalModel, ntk: NtkConfig, coupled: bool) -> tuple[str, ...]:
    """The signatures that are exported: if all are asked for without `ntk_features` where they would be no good."""
    traced = math.prod(model.output.shape[a] or 1 for a in ntk.trace_axes)
    outputs = math.prod(n or 1 for n in model.output.shape[1:]) // traced * (ntk.trace_samples or traced)
    if set(signatures) == set(SIGNATURES) and (coupled or outputs > MOST_OUTPUTS):
        return tuple(name for name in signatures if name != "ntk_features")
    if coupled and "ntk_features" in signatures:
        raise ExportError(
            "export.signatures: expected no ntk_features where examples influence each other (ntk.vmap_axes: null), "
            "because an example then has no Jacobian of its own, received it; take it off the list."
        )
    return tuple(signatures)


def _check_on_examples(model: FunctionalModel, vmap_axes: Any, rtol: float) -> None:
    """Raises if the function of a model is not that model, or if its examples influence each other.

    Args:
      model: the model, whose function is evaluated as the product does it.
      vmap_axes: None if examples may influence each other.
      rtol: of the function's outputs to those that TensorFlow computes; more if TensorFlow does so in half precision,
        or if no wrong conversion is so near.
    """
    rtol = max(rtol, _FAITHFUL, 0.0 if model.half is None else _HALF_ROUNDINGS * float(jnp.finfo(model.half).eps))
    first, mixed = _two_batches(model)
    batches = map(model.behind_front, (first, mixed))
    apply = jax.jit(as_on_platforms(model.apply_fn, [jax.default_backend()]))
    outputs, among = (np.asarray(apply(model.trainable, model.frozen, x), np.float64) for x in batches)
    original = np.asarray(model.original(first), np.float64)
    if model.half is not None:  # where it overflows, there is nothing to compare with
        original = np.where(np.isfinite(original), original, outputs)
    if not (change := _change(original, outputs)) <= rtol:
        raise ExportError(
            f"{model.name!r} was not converted to JAX faithfully: expected the outputs that TensorFlow computes on "
            f"random inputs, received a difference of {change:.2g} (relative to the largest). Replace the layers that "
            "are less common, and please report them; if it is the outputs that are inexact in the model's own "
            "precision, set a larger export.verify.rtol."
        )
    if vmap_axes is not None and not (change := _change(outputs[1], among[1])) <= _ROUNDING:
        raise ExportError(
            "Examples influence each other: expected the output of an example not to depend on the others of its batch "
            f"(ntk.vmap_axes: {vmap_axes}), received a change of {change:.2g} (relative) when the others changed. "
            "Set ntk.vmap_axes: null for the kernel of whole batches, or remove what couples them (batch statistics, "
            "reductions over the batch axis)."
        )


def _two_batches(model: FunctionalModel) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Three examples, and others around the second of them."""
    first = model.examples(3)
    second = tuple(
        b if a.shape == b.shape else np.roll(a, 1, axis=0)  # texts of another number, where that is open
        for a, b in zip(first, model.examples(3, seed=1), strict=True)
    )
    return first, tuple(np.concatenate([b[:1], a[1:2], b[2:]]) for a, b in zip(first, second, strict=True))


def _change(expected: np.ndarray, received: np.ndarray) -> float:
    """The largest difference relative to the largest expected number; what neither side has finite does not count."""
    either = np.isfinite(expected) | np.isfinite(received)
    scale = np.max(np.abs(expected), initial=np.finfo(np.float32).tiny, where=np.isfinite(expected))
    with np.errstate(invalid="ignore"):  # inf - inf, where neither is
        return float(np.max(np.abs(expected - received), initial=0.0, where=either) / scale)


def _spec(name: str, shape: tuple[int | None, ...], dtype: str) -> str:
    return f"{name} ({', '.join('n' if d is None else str(d) for d in shape)}) {dtype}"
