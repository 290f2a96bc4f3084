"""Brings every kind of TensorFlow model into one form: a graph of flat inputs and outputs, and its variables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.errors import ExportError
from exporter.functionalize.input_shapes import InputShapes, fix_sizes
from exporter.functionalize.model_kinds import InputSpec, Source, source_of, variable_name
from exporter.functionalize.structures import leaves, map_leaves


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A named input or output: `shape` begins with None for the batch axis, `dtype` is numpy's name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:  # noqa: D105
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclasses.dataclass(frozen=True)
class ModelVariable:
    """A variable of the model by its unique path; the graph captures the handle of `variable`."""

    path: str
    variable: tf.Variable
    trainable: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its value."""
        return tuple(self.variable.shape)

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype of its value."""
        return np.dtype(self.variable.dtype.as_numpy_dtype)


@dataclasses.dataclass(frozen=True)
class TracedModel:
    """A model as a graph from flat inputs to a flat list of outputs, in inference mode."""

    name: str
    function: Any  # tf.ConcreteFunction
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variables: tuple[ModelVariable, ...]

    def call(self, inputs: Sequence[np.ndarray]) -> Any:
        """The flat list of outputs, as TensorFlow computes them, of inputs that are cast to the types of `inputs`."""
        return self.function(*(tf.cast(x, spec.dtype) for x, spec in zip(inputs, self.inputs, strict=True)))

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """The inputs as TensorFlow describes them."""
        return [tf.TensorSpec(spec.shape, spec.dtype) for spec in self.inputs]

    @property
    def captures(self) -> list[Any]:
        """What the graph captures, in its order: ModelVariables, constants as arrays, handles of other resources."""
        by_handle = {id(v.variable.handle): v for v in self.variables}
        return [
            by_handle.get(id(tensor), tensor) if tensor.dtype == tf.resource else tensor.numpy()
            for tensor in self.function.captured_inputs
        ]


def trace(model: Any, input_shapes: InputShapes | None = None) -> TracedModel:
    """Traces a model, with these sizes for the axes of its inputs that it leaves open.

    ExportError if it is of no known kind, or its inputs are unknown, do not fit the sizes, or cannot be served.
    """
    source = source_of(model)
    open_specs = [_with_batch_axis(spec, source) for _, spec in leaves(source.inputs)]
    specs = fix_sizes(source.name, open_specs, input_shapes)
    if not specs:
        raise ExportError(f"Expected {source.name!r} to have at least one input tensor, received none.")
    output_names: list[str] = []

    def flat(*tensors: tf.Tensor) -> list[tf.Tensor]:
        remaining = iter(tensors)
        outputs = source.call(map_leaves(lambda _: next(remaining), source.inputs))
        named = [(name, value) for name, value in leaves(outputs) if value is not None]
        output_names[:] = _name_outputs([name for name, _ in named], source.output_names)
        return [value for _, value in named]

    try:
        function = tf.function(flat, autograph=source.autograph).get_concrete_function(*specs)
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(str(_to_spec(spec)) for spec in specs)
        cure = "; it takes other sizes only (export.input_shapes)" if input_shapes else ""
        raise ExportError(
            f"{source.name!r} cannot be called in inference mode on inputs {shapes}: {_cause(error)}{cure}"
        ) from error
    outputs = []
    for name, tensor in zip(output_names, function.structured_outputs, strict=True):
        if not isinstance(tensor, tf.TensorSpec | tf.Tensor):
            raise ExportError(
                f"Output {name!r} of {source.name!r} must be a dense tensor, received {type(tensor).__name__}; "
                "convert it inside of the model."
            )
        outputs.append(_to_spec(tf.TensorSpec(tensor.shape, tensor.dtype, name)))
    return TracedModel(
        name=source.name,
        function=function,
        inputs=tuple(_to_spec(spec) for spec in specs),
        outputs=tuple(outputs),
        variables=_unique_variables(source.variables, function),
    )


def _cause(error: Exception) -> str:
    """What Keras or TensorFlow says, in one line, without the layer's arguments and the node's attributes."""
    text = re.sub(r"\x1b\[\d+m", "", str(error)).partition("\n\nArguments received by")[0]
    return " ".join(re.sub(r" for '{{node.*", "", text, flags=re.DOTALL).split())


def _to_spec(spec: tf.TensorSpec) -> TensorSpec:
    shape = (None, *spec.shape.as_list()[1:]) if spec.shape.rank else ()
    return TensorSpec(spec.name, shape, spec.dtype.name)


def _with_batch_axis(named: InputSpec, source: Source) -> tf.TensorSpec:
    """The spec with an open batch axis; ExportError if it is not a dense tensor of known rank, of texts or numbers."""
    what, spec = f"Input {named.name!r} of {source.name!r}", named.spec
    if not isinstance(spec, tf.TensorSpec):
        kind = type(spec).__name__.removesuffix("Spec")
        raise ExportError(f"{what} must be a dense tensor, received a {kind}; convert it before the model.")
    if not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool or spec.dtype == tf.string):
        raise ExportError(
            f"{what} must be floating, integer or string, received {spec.dtype.name}; convert it before the model."
        )
    if spec.shape.rank is None or spec.shape.rank == 0:
        raise ExportError(f"{what} must have a batch axis and a known rank, received shape {spec.shape}.")
    sizes = spec.shape.as_list()
    if source.fixed_batch and sizes[0] is not None:
        raise ExportError(
            f"{what} must have an open batch axis, received shape {tuple(sizes)}; save it with None there."
        )
    return tf.TensorSpec([None, *sizes[1:]], spec.dtype, named.name)


def _name_outputs(paths: list[str], names: Sequence[str]) -> list[str]:
    """Names of the outputs: dict keys, else the given names, else 'output' or 'output_0', 'output_1', …."""
    if all(path.isdigit() or not path for path in paths):
        if len(names) == len(paths) == len(set(names)):
            return list(names)
        return ["output"] if len(paths) == 1 else [f"output_{i}" for i in range(len(paths))]
    return paths


def _unique_variables(declared: Sequence[tuple[str, tf.Variable, bool]], function: Any) -> tuple[ModelVariable, ...]:
    """The declared variables, and after them the others that the graph captures; a repeated path gets _1, _2, …."""
    by_handle: dict[int, tuple[str, tf.Variable, bool]] = {}
    for path, variable, trainable in declared:
        by_handle.setdefault(id(variable.handle), (path, variable, trainable))
    captured = {id(variable.handle): variable for variable in function.variables}
    for tensor in function.captured_inputs:  # in a fixed order, unlike function.variables
        if id(tensor) in captured:
            variable = captured[id(tensor)]
            by_handle.setdefault(id(tensor), (variable_name(variable), variable, variable.trainable))
    taken = {path for path, _, _ in by_handle.values()}
    seen: set[str] = set()
    unique = []
    for path, variable, trainable in by_handle.values():
        name, suffix = path, 0
        while name in seen or (suffix and name in taken):
            suffix += 1
            name = f"{path}_{suffix}"
        seen.add(name)
        unique.append(ModelVariable(name, variable, trainable))
    return tuple(unique)
