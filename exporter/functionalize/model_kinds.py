"""The kinds of models there are, and for each how to call it, on which inputs, and which variables it has."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from exporter.compat import keras_names
from exporter.compat.tensorflow_names import AutoTrackable, concrete_functions
from exporter.errors import ExportError
from exporter.functionalize.structures import leaves, map_leaves
from exporter.functionalize.variable_paths import variable_paths

# Where Keras' exports list their variables a second time; these say less than the variables' names.
_VARIABLE_LISTS = ("variables", "trainable_variables", "non_trainable_variables", "keras_api", "signatures")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """An input by the name that users see, as TensorFlow describes it."""

    name: str
    spec: tf.TypeSpec


@dataclasses.dataclass(frozen=True)
class Source:
    """What is needed to trace a model."""

    name: str
    call: Callable[[Any], Any]  # of the structure `inputs`, with tensors as leaves
    inputs: Any  # a structure of InputSpecs
    variables: Sequence[tuple[str, tf.Variable, bool]]  # (path, perhaps not unique; variable; trainable)
    output_names: Sequence[str] = ()  # names of a flat list of outputs
    autograph: bool = False
    fixed_batch: bool = False  # whether it can only be called with the batch size that its specs give


def source_of(model: Any) -> Source:
    """How to trace the model; ExportError if it is of no known kind, or the shapes of its inputs are not known."""
    if isinstance(model, keras.layers.Layer):
        return _keras3(model)
    if _is_keras2(model):
        return _keras2(model)
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]) and isinstance(model[1], Mapping | list):
        return _function_with_parameters(*model)
    if isinstance(model, tf.types.experimental.Callable):
        return _function(model)
    if isinstance(model, tf.Module):
        return _module(model)
    if isinstance(model, AutoTrackable):
        return _restored(model)
    raise ExportError(
        "Expected a Keras model, a tf.Module, a tf.function, a pair (tf.function, params) or an object from "
        f"tf.saved_model.load; received {type(model).__module__}.{type(model).__qualname__}."
    )


def variable_name(variable: tf.Variable) -> str:
    """The name of a tf.Variable without TensorFlow's output index."""
    return variable.name.removesuffix(":0")


def _named(specs: Any, names: Sequence[str]) -> Any:
    """The structure of type specs as InputSpecs; their names keep letters, digits and '_' and are unique."""
    clean = [re.sub(r"\W", "_", name) for name in names]
    if len(set(clean)) < len(clean):
        clean = [f"input_{i}" for i in range(len(clean))]
    remaining = iter(clean)
    return map_leaves(lambda spec: InputSpec(next(remaining), spec), specs)


def _input_names(structure: Any, fallback: Callable[[Any], str]) -> list[str]:
    """Names of a structure's leaves: dict keys where there are, else fallback(leaf)."""
    return [path if path.strip("/0123456789") else fallback(leaf) for path, leaf in leaves(structure)]


# --------------------------------------------------------------------------------------------------------- Keras 3


def _keras3(model: Any) -> Source:
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"Expected Keras to run on TensorFlow, received the {keras.backend.backend()} backend; set the environment "
            "variable KERAS_BACKEND=tensorflow before Keras is imported."
        )
    functional = keras_names.functional_of(model) if isinstance(model, keras.Sequential) and model.built else model
    structure = keras_names.inputs_of(functional)
    if structure is not None:
        names = _input_names(structure, lambda tensor: keras_names.operation_of(tensor).name)
        inputs = _named(map_leaves(_keras3_spec, structure), names)
        call = _inference(model)
    else:
        inputs = _keras3_recorded_inputs(model)
        call = _inference_positional(model)
    trainable = {id(variable) for variable in model.trainable_variables}

    def call_without_cudnn(tensors: Any) -> Any:
        with _without_cudnn(model):
            return call(tensors)

    return Source(
        name=model.name,
        call=call_without_cudnn,
        inputs=inputs,
        variables=[(path, v.value, id(v) in trainable) for path, v in variable_paths(model)],
        output_names=getattr(functional, "output_names", ()),
    )


def _inference(model: Any) -> Callable[[Any], Any]:
    return lambda inputs: model(inputs, training=False)


def _inference_positional(model: Any) -> Callable[[Any], Any]:
    return lambda inputs: model(*inputs, training=False)


@contextlib.contextmanager
def _without_cudnn(model: Any) -> Iterator[None]:
    """RNN layers use their loop, not cuDNN's kernel, also where there is a GPU."""
    previous = [(layer, layer.use_cudnn) for layer in keras_names.all_layers_in(model) if hasattr(layer, "use_cudnn")]
    try:
        for layer, _ in previous:
            layer.use_cudnn = False
        yield
    finally:
        for layer, value in previous:
            layer.use_cudnn = value


def _keras3_spec(tensor: Any) -> tf.TypeSpec:
    if getattr(tensor, "sparse", False):
        return tf.SparseTensorSpec(tensor.shape, tensor.dtype)
    if getattr(tensor, "ragged", False):
        return tf.RaggedTensorSpec(tensor.shape, tensor.dtype)
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def _keras3_recorded_inputs(model: Any) -> list[Any]:
    """The positional inputs of a subclassed model, from the shapes that Keras recorded when it was first called."""
    shapes = keras_names.recorded_shapes(model)
    if not model.built or not shapes:
        raise _not_built(model)

    def to_specs(shape: Any) -> Any:
        if isinstance(shape, Mapping):
            return {key: to_specs(value) for key, value in shape.items()}
        if all(isinstance(size, int | None) for size in shape):
            return tf.TensorSpec(shape, model.input_dtype)
        return [to_specs(value) for value in shape]

    structure = {name.removesuffix("_shape"): to_specs(shape) for name, shape in shapes.items()}
    parameters = [p for p in inspect.signature(model.call).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in parameters if p.default is p.empty]
    if len(required) > len(structure):
        raise ExportError(
            f"Expected Keras to have recorded the shapes of the inputs {', '.join(required)} of {model.name!r}, "
            f"received only {', '.join(structure)}; wrap it in a functional model: keras.Model(inputs, model(*inputs))."
        )
    paths = [path for path, _ in leaves(structure)]
    return list(_named(structure, [path.rpartition("/")[2] for path in paths]).values())


def _not_built(model: Any) -> ExportError:
    return ExportError(
        f"Expected a built model, received {model.name!r} without known input shapes; call it once on an example, or "
        "begin it with a keras.Input."
    )


# --------------------------------------------------------------------------------------------- Keras 2 (tf_keras)


def _is_keras2(model: Any) -> bool:
    return any(base.__module__.startswith("tf_keras.") and base.__name__ == "Layer" for base in type(model).__mro__)


def _keras2(model: Any) -> Source:
    if getattr(model, "inputs", None):
        structure = model.input
        by_id = {id(tensor): name for tensor, name in zip(model.inputs, model.input_names, strict=True)}
        names = _input_names(structure, lambda tensor: by_id[id(tensor)])
        inputs = _named(map_leaves(lambda tensor: tensor.type_spec, structure), names)
        call = _inference(model)
    else:
        recorded = model.save_spec(dynamic_batch=True) if hasattr(model, "save_spec") else None
        if recorded is None:
            raise _not_built(model)
        structure = list(recorded[0])
        inputs = _named(structure, _input_names(structure, lambda spec: spec.name or "input"))
        call = _inference_positional(model)
    trainable = {id(variable) for variable in model.trainable_weights}
    return Source(
        name=model.name,
        call=call,
        inputs=inputs,
        variables=[(variable_name(v), _local(v), id(v) in trainable) for v in model.weights],
        output_names=getattr(model, "output_names", None) or (),
        autograph=True,
    )


def _local(variable: tf.Variable) -> tf.Variable:
    """A variable, or of one that a tf.distribute strategy mirrors the first of its copies."""
    return tf.distribute.get_strategy().experimental_local_results(variable)[0]


# ------------------------------------------------------------------------------ functions, modules, loaded objects


def _function(function: Any) -> Source:
    args, kwargs = _signature(function, function_name(function))
    call, inputs = _bind(function, args, kwargs)
    return Source(function_name(function), call, inputs, (), fixed_batch=_is_fixed(function))


def _function_with_parameters(function: Any, params: Any) -> Source:
    """The pair (function of (params, *inputs), params): the leaves of params become variables."""
    name = function_name(function)
    if not isinstance(function, tf.types.experimental.Callable):
        raise ExportError(
            f"Expected the first of the pair to be a tf.function, received {type(function).__name__}; decorate it with "
            "tf.function(input_signature=...)."
        )
    args, kwargs = _signature(function, name)
    held = map_leaves(lambda leaf: leaf if isinstance(leaf, tf.Variable) else tf.Variable(leaf), params)
    variables = [(path, v, v.trainable and v.dtype.is_floating) for path, v in leaves(held)]
    call, inputs = _bind(lambda *a, **k: function(map_leaves(tf.convert_to_tensor, held), *a, **k), args[1:], kwargs)
    return Source(name, call, inputs, variables)


def _module(module: Any) -> Source:
    name = module.name
    function = module.__call__ if callable(module) else None
    if isinstance(function, tf.types.experimental.Callable) and _signatures(function):
        args, kwargs = _signature(function, name)
        call, inputs = _bind(function, args, kwargs)
        return Source(name, call, inputs, _trackable_variables(module))
    signature = getattr(module, "input_signature", None)
    shape = getattr(module, "input_shape", None)
    if function is None or (signature is None and shape is None):
        raise ExportError(
            f"Expected {name!r} to say what its inputs are, received a tf.Module with no input signature; decorate its "
            "__call__ with tf.function(input_signature=[tf.TensorSpec([None, ...], tf.float32)]), or set its attribute "
            "`input_shape`, batch axis first, or `input_signature`."
        )
    specs = list(signature) if signature is not None else [tf.TensorSpec(shape, tf.float32)]
    call, inputs = _bind(function, specs, {})
    return Source(name, call, inputs, _trackable_variables(module), autograph=True)


def _restored(model: Any) -> Source:
    """An object from tf.saved_model.load, by its __call__, call, serve, or the signature serving_default."""
    members = [getattr(model, name, None) for name in ("__call__", "call", "serve")]
    members.append(getattr(model, "signatures", {}).get("serving_default"))
    functions = [f for f in members if isinstance(f, tf.types.experimental.Callable) and _signatures(f)]
    if not functions:
        raise ExportError(
            "Expected a SavedModel with a function __call__, call or serve, or the signature serving_default; received "
            "one with none of them."
        )
    name = "saved_model"
    args, kwargs = _signature(functions[0], name)
    call, inputs = _bind(functions[0], args, kwargs)
    return Source(name, call, inputs, _trackable_variables(model), fixed_batch=True)


def _is_fixed(function: Any) -> bool:
    return isinstance(function, tf.types.experimental.ConcreteFunction)


def function_name(function: Any) -> str:
    """The name of a tf.function."""
    if isinstance(function, tf.types.experimental.ConcreteFunction):
        name = function.name if isinstance(function.name, str) else function.name.decode()
        return re.sub(r"^__inference_(.+)_\d+$", r"\1", name)
    return function.__name__


def _signatures(function: Any) -> list[tuple[Any, Any]]:
    """The structured signatures (args, kwargs) that a tf.function was given or was called with."""
    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return [function.structured_input_signature]
    if getattr(function, "input_signature", None) is not None:
        return [function.get_concrete_function().structured_input_signature]
    return [c.structured_input_signature for c in concrete_functions(function)]


def _signature(function: Any, name: str) -> tuple[Any, Any]:
    """The one signature to use: of several that only differ in Python values, the one for inference."""
    signatures = _signatures(function)
    inference = [s for s in signatures if not any(leaf is True for _, leaf in leaves(s))] or signatures
    inference.sort(
        key=lambda s: str(_tensor_specs(s)) != str(_any_batch(s))
    )  # first those that have an open batch axis
    tensors = {str(_any_batch(s)) for s in inference}
    if len(tensors) != 1:
        found = "none" if not tensors else f"{len(tensors)}: {'; '.join(sorted(tensors))}"
        raise ExportError(
            f"Expected {name!r} to have one input signature, received {found}; decorate it with "
            "tf.function(input_signature=[...])."
        )
    return inference[0]


def _tensor_specs(signature: Any) -> list[tf.TypeSpec]:
    return [leaf for _, leaf in leaves(signature) if isinstance(leaf, tf.TypeSpec)]


def _any_batch(signature: Any) -> list[tf.TypeSpec]:
    """The tensors of a signature with their first axis open."""
    return [
        tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, spec.name)
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank
        else spec
        for spec in _tensor_specs(signature)
    ]


def _bind(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Callable[[Any], Any], Any]:
    """function(*args, **kwargs) as a function of its tensors alone, and their InputSpecs."""
    signature = (list(args), dict(kwargs))
    found = [(path, leaf) for path, leaf in leaves(signature) if isinstance(leaf, tf.TypeSpec)]
    names = [getattr(spec, "name", None) or path.rpartition("/")[2] for path, spec in found]
    if len(found) == 1 and names[0].isdigit():
        names = ["x"]
    names = [f"input_{name}" if name.isdigit() else name for name in names]

    def call(tensors: Sequence[Any]) -> Any:
        remaining = iter(tensors)
        bound_args, bound_kwargs = map_leaves(
            lambda leaf: next(remaining) if isinstance(leaf, tf.TypeSpec) else leaf, signature
        )
        return function(*bound_args, **bound_kwargs)

    return call, _named([spec for _, spec in found], names)


def _trackable_variables(root: Any) -> list[tuple[str, tf.Variable, bool]]:
    """All variables that a module or a loaded object holds, by attribute path; what Keras saved, by name."""
    listed = getattr(root, "trainable_variables", None)
    trainable = {id(v) for v in listed} if listed is not None else None
    found: dict[int, tuple[str, tf.Variable, bool]] = {}
    for path, variable in _walk_trackables(root):
        if path.split("/")[0].startswith(("_", *_VARIABLE_LISTS, "layer-", "layer_with_weights")):
            path = variable_name(variable)
        is_trainable = variable.trainable if trainable is None else id(variable) in trainable
        found.setdefault(id(variable), (path, variable, is_trainable and variable.dtype.is_floating))
    return list(found.values())


def _walk_trackables(root: Any) -> Iterator[tuple[str, tf.Variable]]:
    """Breadth first, so that the shortest path to a variable comes first."""
    view = tf.train.TrackableView(root)
    queue, seen = [("", root)], {id(root)}
    while queue:
        path, node = queue.pop(0)
        for name, child in view.children(node).items():
            child_path = f"{path}/{name}" if path else name
            if isinstance(child, tf.Variable):
                yield child_path, child
            elif id(child) not in seen and not isinstance(child, tf.types.experimental.Callable):
                seen.add(id(child))
                queue.append((child_path, child))
