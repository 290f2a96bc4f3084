"""A model as a pure function, with its variables beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.compat.jax_names import dce_jaxpr
from exporter.errors import ExportError
from exporter.functionalize.custom_gradients import check_gradients
from exporter.functionalize.examples import Examples
from exporter.functionalize.front import Front
from exporter.functionalize.frozen_part import FrozenPart, split_frozen_part
from exporter.functionalize.input_shapes import InputShapes
from exporter.functionalize.quantization import given_gradients
from exporter.functionalize.splitting import Splitting, with_layers
from exporter.functionalize.tf_ops import (
    GraphFunction,
    Library,
    at_least_float32,
    half_precision,
    is_half,
    layers_that_override_gradients,
    layers_that_read_what_they_wrote,
    random_operations,
    unsupported_operations,
    widened,
)
from exporter.functionalize.tracing import ModelVariable, TensorSpec, TracedModel, trace
from exporter.functionalize.variable_patterns import select

__all__ = ["FunctionalModel", "TensorSpec", "functionalize"]

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A model as a pure function.

    `apply_fn(trainable, frozen, inputs)` computes the chosen output, batch axis 0, for inputs of any batch size, in
    inference mode. `trainable` holds the variables that the kernel is over, `frozen` the others that the output
    depends upon (BatchNorm statistics, frozen layers, variables excluded by pattern); both map a variable's path to
    its value. Variables that the output does not depend upon are in neither.

    None of these is of half precision: what the model has as float16 or bfloat16 comes and goes as float32. `half` is
    the half type that the model computes the output in (bfloat16 if both), None if none; whether `apply_fn` rounds to
    it is decided by `functionalize`.
    """

    name: str
    apply_fn: Callable[[Arrays, Arrays, tuple[Any, ...]], jax.Array]
    trainable: Mapping[str, np.ndarray]
    frozen: Mapping[str, np.ndarray]
    excluded: frozenset[str]  # those of `frozen` that are trainable in the model, but excluded by pattern
    inputs: tuple[TensorSpec, ...]  # of apply_fn
    signature_inputs: tuple[TensorSpec, ...]  # the model's own; others than `inputs` if there is a front
    front: Front | None  # makes `inputs` of the model's own, where its first part stays TensorFlow or is frozen
    examples: Examples  # of the model's own inputs
    output: TensorSpec
    outputs: tuple[TensorSpec, ...]  # all of the model's
    original: Callable[[tuple[np.ndarray, ...]], np.ndarray]  # the chosen output, as TensorFlow computes it
    half: np.dtype | None = None
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the model's own tf.Variables, by path
    frozen_part: FrozenPart | None = None  # what `front` is, if it is frozen and so may be computed with JAX

    @property
    def all_frozen(self) -> dict[str, np.ndarray]:
        """`frozen`, and those of the part that is apart."""
        return {**(self.frozen_part.variables if self.frozen_part else {}), **self.frozen}

    def behind_front(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """What apply_fn takes, of the model's own inputs."""
        return inputs if self.front is None else self.front.run(inputs)


def functionalize(
    model: Any,
    *,
    trainable: str | Sequence[str] = "*",
    output: str | int | None = None,
    keep_half: bool = False,
    input_shapes: InputShapes | None = None,
    examples: Mapping[str, np.ndarray] | None = None,
    frozen_apart: bool = False,
) -> FunctionalModel:
    """Turns a model into a pure JAX function.

    Args:
      model: a Keras 3 or tf_keras model, a tf.Module, a tf.function with an input signature, a pair (tf.function of
        (params, x), params as a nested dict), or an object from tf.saved_model.load.
      trainable: glob patterns of the paths of the variables that the kernel is over, among the model's trainable
        ones; "!" before a pattern excludes.
      output: name or index of the output, needed if there are several.
      keep_half: whether the function rounds to half precision where the model does; if not, it computes in float32
        there, and casts to half precision leave values as they are.
      input_shapes: sizes for axes of inputs that the model leaves open, in their order, by input; of a model with one
        input also these sizes alone.
      examples: real inputs by name, to check the model with; without them they are drawn.
      frozen_apart: whether a first part without chosen variables may be apart, so that `inputs` are what it gives.

    Raises:
      ExportError: the model, a pattern, a size or the output cannot be used; the message says what to do.
    """
    traced = trace(model, input_shapes)
    index = _output_index(traced, output)
    half = half_precision(GraphFunction(traced.function.function_def, _library(traced, keep_half=True), result=index))
    library = _library(traced, keep_half)
    function = GraphFunction(traced.function.function_def, library, result=index)
    _check_operations(traced.name, function)
    overridden = layers_that_override_gradients(function)
    front: Front | None = None
    part: FrozenPart | None = None
    paths = [v.path for v in traced.variables if v.trainable]
    specs, captures = traced.inputs, traced.captures
    if unsupported_operations(function) or any(spec.dtype == "string" for spec in traced.inputs):
        splitting = Splitting(traced, library, index)
        sample = Examples(traced.inputs, splitting.vocabularies, examples)
        split = splitting.split(sample)
        front, specs, function, captures = split.front, split.specs, split.rest, split.captures
    else:
        sample = Examples(traced.inputs, {}, examples)
        if given := given_gradients(traced.function, function, keep_half=keep_half):
            function = GraphFunction(traced.function.function_def, library, result=index, replacements=given)
            overridden = layers_that_override_gradients(function)
        elif frozen_apart and paths and half is None and not overridden:
            apart = split_frozen_part(traced, library, index, set(select(paths, trainable)), sample, _value)
            if apart is not None:
                split, part = apart
                front, specs, function, captures = split.front, split.specs, split.rest, split.captures
    constants = [c.dtype if isinstance(c, ModelVariable | np.ndarray) else None for c in captures]
    dtypes = [*(np.dtype(spec.dtype) for spec in specs), *constants]

    def call(params: Arrays, inputs: tuple[Any, ...]) -> jax.Array:
        if len(inputs) != len(specs):
            raise ValueError(f"Expected {len(specs)} inputs, received {len(inputs)}.")
        values = [params[c.path] if isinstance(c, ModelVariable) else c for c in captures]
        arguments = zip([*map(jnp.asarray, inputs), *values], dtypes, strict=True)
        return jnp.asarray(widened(function(*(_entering(v, dtype, keep_half) for v, dtype in arguments))[0]))

    variables = [c for c in captures if isinstance(c, ModelVariable)]
    output_spec, used = _trace_once(traced, index, call, specs, variables)
    if not paths:
        raise ExportError(
            f"Expected {traced.name!r} to have trainable variables, received a model of {len(traced.variables)} "
            "variables with none; set `trainable = True` on the layers that the kernel is to be over."
        )
    chosen = set(select(paths, trainable))
    values = {v.path: _value(v) for v in traced.variables if v.path in used}
    if not chosen & used:
        raise ExportError(
            f"Output {output_spec.name!r} of {traced.name!r} does not depend upon any of the variables chosen by "
            f"`trainable`, so its kernel is zero; received {trainable!r}."
        )
    unused = {v.path: np.broadcast_to(np.zeros((), v.dtype), v.shape) for v in variables if v.path not in used}

    def call_with_used(params: Arrays, inputs: tuple[Any, ...]) -> jax.Array:
        return call({**unused, **params}, inputs)

    _check_differentiable(traced, library, call_with_used, specs, values, chosen)
    if overridden:
        check_gradients(traced, index, call_with_used, values, chosen, overridden, half, front and (front, sample))

    def apply_fn(trainable: Arrays, frozen: Arrays, inputs: tuple[Any, ...]) -> jax.Array:
        params = {path: jnp.asarray(value) for path, value in {**frozen, **trainable}.items()}
        return call_with_used(params, inputs)

    return FunctionalModel(
        name=traced.name,
        apply_fn=apply_fn,
        trainable={path: value for path, value in values.items() if path in chosen},
        frozen={path: value for path, value in values.items() if path not in chosen},
        excluded=frozenset({**values, **(part.variables if part else {})}) & (frozenset(paths) - chosen),
        inputs=tuple(map(_wide, specs)),
        signature_inputs=tuple(map(_wide, traced.inputs)),
        front=front,
        examples=sample,
        output=output_spec,
        outputs=tuple(map(_wide, traced.outputs)),
        original=lambda inputs: traced.call(inputs)[index].numpy(),
        half=half,
        variables={
            v.path: v.variable for v in traced.variables if v.path in used or (part and v.path in part.variables)
        },
        frozen_part=part,
    )


def _library(traced: TracedModel, keep_half: bool) -> Library:
    return Library(traced.function.graph.as_graph_def().library.function, keep_half=keep_half)


def _entering(value: Any, dtype: np.dtype | None, keep_half: bool) -> Any:
    """An argument of a graph that has it as `dtype`, as the graph is computed."""
    if dtype is None or not is_half(dtype):
        return value
    return value.astype(dtype) if keep_half else widened(value)


def _wide(spec: TensorSpec) -> TensorSpec:
    return spec if spec.dtype == "string" else dataclasses.replace(spec, dtype=at_least_float32(spec.dtype).name)


def _output_index(traced: TracedModel, output: str | int | None) -> int:
    names = [spec.name for spec in traced.outputs]
    listed = ", ".join(map(str, traced.outputs))
    if output is None and len(names) == 1:
        return 0
    if output is None:
        raise ExportError(
            f"{traced.name!r} has {len(names)} outputs; choose one with `output`, by name or index. They are {listed}."
        )
    if isinstance(output, int) and 0 <= output < len(names):
        return output
    if output in names:
        return names.index(output)
    raise ExportError(
        f"Expected `output` to be the name or the index of an output of {traced.name!r}, received {output!r}. They are "
        f"{listed}."
    )


def _check_operations(model_name: str, function: GraphFunction) -> None:
    """ExportError that names what in the output's graph cannot be used, and the layers that it is in."""
    if random := random_operations(function):
        raise ExportError(
            f"Expected the output of {model_name!r} to be determined by its inputs and variables, received random "
            f"operations: {with_layers(random)}. Remove them, or make them depend on training=True."
        )
    if layers := layers_that_read_what_they_wrote(function):
        raise ExportError(
            f"Expected {model_name!r} to leave its variables as they are, received layers that assign to a variable "
            f"and then read it: {', '.join(sorted(layers))}. Assign only when training=True."
        )


def _trace_once(
    traced: TracedModel,
    index: int,
    call: Callable[..., jax.Array],
    specs: Sequence[TensorSpec],
    variables: Sequence[ModelVariable],
) -> tuple[TensorSpec, set[str]]:
    """The chosen output's spec, and the paths of the variables that it depends upon."""
    batch = 13  # no size that a model is likely to be fixed to
    params = {v.path: jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables}
    inputs = tuple(jax.ShapeDtypeStruct((batch, *spec.shape[1:]), spec.dtype) for spec in specs)
    jaxpr, result = jax.make_jaxpr(call, return_shape=True)(params, inputs)
    name = traced.outputs[index].name
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise ExportError(
            f"Expected output {name!r} of {traced.name!r} to be floating, received {result.dtype}; choose another with "
            "`output`."
        )
    if not result.shape or result.shape[0] != batch:
        raise ExportError(
            f"Expected output {name!r} of {traced.name!r} to have the batch on axis 0, received shape {result.shape} "
            f"for a batch of {batch}."
        )
    _, used = dce_jaxpr(jaxpr.jaxpr, [True])
    # make_jaxpr flattens a dict by sorted keys, and the parameters come first.
    return (
        TensorSpec(name, (None, *result.shape[1:]), str(result.dtype)),
        {path for path, is_used in zip(sorted(params), used, strict=False) if is_used},
    )


def _value(variable: ModelVariable) -> np.ndarray:
    """The value of a variable; ExportError if it is not finite."""
    value = widened(variable.variable.numpy())
    if jnp.issubdtype(value.dtype, jnp.floating) and not np.all(np.isfinite(value)):
        raise ExportError(
            f"Expected finite weights, received NaN or infinity in variable {variable.path!r}; restore it from a "
            "checkpoint from before training diverged."
        )
    return value


def _check_differentiable(
    traced: TracedModel,
    library: Library,
    call: Callable[..., jax.Array],
    specs: Sequence[TensorSpec],
    values: Arrays,
    chosen: set[str],
) -> None:
    """ExportError if a loop whose number of iterations depends on data lies between a chosen variable and the output.

    Only needs a trace of the gradient if there is such a loop.
    """
    if not library.dynamic_loops:
        return
    inputs = tuple(jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for spec in specs)
    trainable = {path: value for path, value in values.items() if path in chosen}
    frozen = {path: value for path, value in values.items() if path not in chosen}

    def total(params: Arrays, inputs: tuple[Any, ...]) -> jax.Array:
        return call({**frozen, **params}, inputs).sum()

    try:
        jax.eval_shape(jax.grad(total), trainable, inputs)
    except ValueError as error:
        raise ExportError(
            f"{traced.name!r} has loops whose number of iterations depends on data, so that they have no "
            f"reverse-mode derivative: {', '.join(sorted(library.dynamic_loops))}. Give them a fixed number of "
            "iterations."
        ) from error
