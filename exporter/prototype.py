"""`neural_tangents.experimental` for today's TensorFlow, Keras and JAX: the same functions, for more models.

Importing this module makes `import neural_tangents` work as well, where that is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from exporter.compat import jax2tf_names
from exporter.compat.jax_names import enable_x64
from exporter.compat.neural_tangents_names import NeuralTangentsError, import_neural_tangents
from exporter.errors import ExportError
from exporter.functionalize import FunctionalModel
from exporter.functionalize.model_kinds import source_of
from exporter.functionalize.sizes_of_calls import ModelAtSizesOfCalls
from exporter.functionalize.structures import leaves, map_leaves
from exporter.functionalize.tf_ops import GraphFunction, Library, widened
from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise.engine import layerwise_kernel_fn
from exporter.ntk.layerwise.projected import projected_features_fn
from exporter.ntk.neural_tangents_bridge import (
    IMPLEMENTATIONS,
    Axes,
    NtkFn,
    empirical_ntk_fn,
    fastest_ntk_fn,
    implementations,
)
from exporter.ntk.sampled_traces import sampled_outputs

__all__ = ["empirical_ntk_fn_tf", "get_apply_fn_and_params", "ntk_features_fn"]

PyTree = Any
Params = Mapping[str, Any]

PLATFORMS = ("cpu", "cuda")

with contextlib.suppress(NeuralTangentsError):  # said by those implementations of the kernel that need it
    import_neural_tangents()


def empirical_ntk_fn_tf(
    f: Any,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: int | str = 1,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
    *,
    trainable_only: bool = True,
    trace_samples: int | None = None,
    trace_seed: int = 0,
) -> Callable[..., PyTree]:
    """`neural_tangents.experimental.empirical_ntk_fn_tf`: the empirical NTK of a TensorFlow model.

    Args:
        f: a Keras 3 or tf_keras model that is built; a `tf.Module` that is callable on inputs of its `input_shape`, or
            whose `__call__` is a `tf.function` with an input signature; or a `tf.function` of `(params, x)` with an
            input signature, where params and x may be nested dicts, lists and tuples. Axes that a model leaves open
            have the sizes of the inputs that `ntk_fn` is called with.
        trace_axes: see `exporter.ntk.neural_tangents_bridge.empirical_ntk_fn`, also for the kernel's shape.
        diagonal_axes: as above.
        vmap_axes: as above. 0 if the outputs of each example depend on that example alone: much faster than None.
        implementation: as above, or "layerwise", this project's own engine, which AUTO measures too; both where
            `vmap_axes` is 0 or None.
        _j_rules: as above.
        _s_rules: as above.
        _fwd: as above.
        trainable_only: whether `params` are the model's trainable variables, or all its floating variables; of no
            meaning for a `tf.function`.
        trace_samples: how many random ±1 combinations of the traced outputs the trace is estimated with; None for the
            exact trace.
        trace_seed: of their signs.

    Returns:
        A `tf.function` `ntk_fn(x1, x2, params)`, compiled by XLA for each new combination of shapes; `x2=None` stands
        for x1. For a model `params` is a dict from variable path to array, as from `get_apply_fn_and_params`, and
        variables that are not in it keep the value that they have now. A model with several outputs has a kernel for
        each, in the outputs' structure. What the model computes in half precision is computed in float32 here, and
        parameters of half precision are taken as float32.

    Raises:
        ValueError: for arguments that do not go together, here or when `ntk_fn` is called.
        ExportError: for a model that cannot be converted to JAX.
    """
    model = _from_function(f) if _is_function(f) else _from_model(f, trainable_only)
    if trace_samples is not None:
        model = dataclasses.replace(model, apply_fn=_sampled(model.apply_fn, trace_axes, trace_samples, trace_seed))
    ntk_fn = _ntk_fn(
        model,
        implementation,
        trace_axes=trace_axes,
        diagonal_axes=diagonal_axes,
        vmap_axes=vmap_axes,
        _j_rules=_j_rules,
        _s_rules=_s_rules,
        _fwd=_fwd,
    )
    converted = jax2tf_names.convert(
        # Derivatives are of the type of what they are taken with respect to, so half precision must be widened before.
        lambda x1, x2, params, frozen: ntk_fn(x1, x2, jax.tree.map(widened, params), frozen=frozen),
        native_serialization_platforms=PLATFORMS,
    )
    frozen = {path: tf.constant(value) for path, value in model.frozen.items()}

    def program(x1: PyTree, x2: PyTree, params: PyTree) -> PyTree:
        with enable_x64(model.is_float64):
            return converted(x1, x2, params, frozen)

    return tf.function(program, jit_compile=True, autograph=False)


def get_apply_fn_and_params(f: Any, *, trainable_only: bool = True) -> tuple[Callable[..., PyTree], dict[str, Any]]:
    """`neural_tangents.experimental.get_apply_fn_and_params`: a model as a JAX function, and its parameters.

    Args:
        f: a model as for `empirical_ntk_fn_tf`, not a `tf.function` of (params, x), whose parameters are the caller's.
        trainable_only: whether the parameters are the model's trainable variables, or all its floating variables
            (BatchNorm's statistics and frozen layers too). Those that no output depends upon are left out.

    Returns:
        `(apply_fn, params)`: `apply_fn(params, x)` computes the model's outputs in inference mode, in JAX; `params` is
        a dict from variable path to numpy array, usable as it is from TensorFlow and JAX. What the model has in half
        precision is float32 in both.

    Raises:
        ValueError: for a `tf.function`.
        ExportError: for a model that cannot be converted to JAX.
    """
    if _is_function(f):
        raise ValueError(
            "Expected a Keras model or a tf.Module, whose variables are the parameters, received a tf.function; pass "
            "it to empirical_ntk_fn_tf, and your own parameters to the function that this returns."
        )
    model = _from_model(f, trainable_only)

    def apply_fn(params: Params, x: PyTree) -> PyTree:
        return model.apply_fn(params, x, frozen=model.frozen)

    return apply_fn, dict(model.params)


def ntk_features_fn(
    f: Any,
    *,
    trace_axes: Axes = (-1,),
    dimensions: int = 4096,
    seed: int = 0,
    trainable_only: bool = True,
    memory: int = 1 << 30,
) -> Callable[..., PyTree]:
    """A random projection of each example's Jacobian, in JAX: what the signature `ntk_features` returns.

    Args:
        f: a model as for `get_apply_fn_and_params`, whose examples do not depend on each other.
        trace_axes: axes of the output that the kernel is averaged over.
        dimensions: D, numbers of a projection.
        seed: of the projection; features of different seeds cannot be compared.
        trainable_only: as for `get_apply_fn_and_params`.
        memory: bytes that derivatives may take; of more outputs they are made for some at a time.

    Returns:
        `features_fn(x, params)`: (n, ..., D) with the axes of the output that are not traced, for a model with several
        outputs in their structure. F(x1) F(x2)ᵀ approximates the kernel of `empirical_ntk_fn_tf`, an entry with a
        standard deviation of at most √((K11 K22 + K12²) / D); `docs/features.md` defines the projection, by the paths
        of `params`. `params` are those of `get_apply_fn_and_params`.

    Raises:
        ValueError: for a `tf.function`, or arguments out of their range.
        ExportError: for a model that cannot be converted to JAX.
    """
    if _is_function(f):
        raise ValueError("Expected a Keras model or a tf.Module, whose variables have paths, received a tf.function.")
    if dimensions < 1 or seed < 0:
        raise ValueError(f"Expected dimensions from 1 and a seed from 0, received {dimensions} and {seed}.")
    model, sketch = _from_model(f, trainable_only), Sketch(dimensions, seed)

    def features_fn(x: PyTree, params: Params) -> PyTree:
        x, params = jax.tree.map(jnp.asarray, (x, dict(params)))
        outputs, structure = jax.tree.flatten(jax.eval_shape(model.apply_fn, params, x, model.frozen))
        inputs, structure_of_inputs = jax.tree.flatten(x)

        def features_of(index: int, rank: int) -> Any:
            axes = [axis % rank for axis in trace_axes]
            if 0 in axes or len(set(axes)) < len(axes):
                raise ValueError(f"Expected different trace_axes other than the batch axis, received {trace_axes}.")

            def apply_fn(params: Params, frozen: Params, x: tuple[Any, ...]) -> Any:
                return jax.tree.leaves(model.apply_fn(params, jax.tree.unflatten(structure_of_inputs, x), frozen))[
                    index
                ]

            fn = projected_features_fn(apply_fn, sketch, trace_axes=axes, memory=memory)
            return fn(params, model.frozen, tuple(inputs))

        return jax.tree.unflatten(structure, [features_of(k, output.ndim) for k, output in enumerate(outputs)])

    return features_fn


@dataclasses.dataclass(frozen=True)
class _Model:
    """`apply_fn(params, x, frozen)` in JAX, and the present values of its params (of a model) and frozen variables."""

    apply_fn: Callable[..., PyTree]
    params: Mapping[str, np.ndarray]
    frozen: Mapping[str, np.ndarray]
    is_float64: bool


def _ntk_fn(model: _Model, implementation: int | str, **settings: Any) -> NtkFn:
    """The NTK in JAX: `ntk_fn(x1, x2, params, frozen=frozen)`."""
    if implementation == "layerwise":
        return _layerwise_ntk_fn(model, **settings)
    if implementation in (IMPLEMENTATIONS["auto"], "auto") and settings["vmap_axes"] in (0, None):
        candidates = {}
        with contextlib.suppress(NeuralTangentsError):
            candidates = implementations(model.apply_fn, **settings)
        return fastest_ntk_fn({**candidates, "layerwise": _layerwise_ntk_fn(model, **settings)})
    return empirical_ntk_fn(model.apply_fn, implementation=implementation, **settings)


def _layerwise_ntk_fn(
    model: _Model, *, trace_axes: Axes, diagonal_axes: Axes, vmap_axes: Any, **of_neural_tangents: Any
) -> NtkFn:
    """The layerwise engine for pytrees of inputs and outputs."""
    if vmap_axes not in (0, None):
        raise ValueError(f"Expected vmap_axes 0 or None for implementation='layerwise', received {vmap_axes!r}.")

    def ntk_fn(x1: PyTree, x2: PyTree, params: PyTree, frozen: Params) -> PyTree:
        outputs, structure = jax.tree.flatten(jax.eval_shape(model.apply_fn, params, x1, frozen))
        inputs1, inputs = jax.tree.flatten(x1)
        inputs2 = None if x2 is None else tuple(jax.tree.leaves(x2))
        shapes1, shapes2 = ([np.shape(x)[1:] for x in side or inputs1] for side in (inputs1, inputs2))
        if shapes1 != shapes2:
            raise ValueError(
                "Expected examples of one shape in x1 and x2 for implementation='layerwise', received "
                f"{shapes1} and {shapes2}; pad them, or choose another implementation."
            )

        def kernel_of(index: int, rank: int) -> Any:
            def apply_fn(params: PyTree, frozen: Params, x: tuple[Any, ...]) -> Any:
                return jax.tree.leaves(model.apply_fn(params, jax.tree.unflatten(inputs, x), frozen))[index]

            whole_batch = vmap_axes is None or 0 in [axis % rank for axis in (*trace_axes, *diagonal_axes)]
            kernel_fn = layerwise_kernel_fn(
                apply_fn, trace_axes=trace_axes, diagonal_axes=diagonal_axes, coupled=whole_batch
            )
            return kernel_fn(params, frozen, tuple(inputs1), inputs2)

        return jax.tree.unflatten(structure, [kernel_of(i, output.ndim) for i, output in enumerate(outputs)])

    return ntk_fn


# ----------------------------------------------------------------------------------------------------------- models


def _from_model(f: Any, trainable_only: bool) -> _Model:
    models_of = ModelAtSizesOfCalls(f)
    models = models_of.example
    if (first := models[0]).front is not None:
        raise ExportError(
            f"Expected a model whose operations all have a JAX form, received {first.name!r} with "
            f"{', '.join(first.front.operations)} in front of its variables; export it by export_savedmodel, or pass "
            "the part behind them."
        )
    structure = _output_structure(f) if len(models) > 1 else 0
    trainable = {path: value for model in models for path, value in model.trainable.items()}
    others = {path: value for model in models for path, value in model.frozen.items() if path not in trainable}
    if not trainable_only:
        trainable |= {path: value for path, value in others.items() if _is_floating(value)}
    frozen = {path: value for path, value in others.items() if path not in trainable}
    flatten_inputs = _input_flattener(f, models[0])

    def apply_fn(params: Params, x: PyTree, frozen: Params) -> PyTree:
        _check_params(params, trainable, frozen)
        inputs = flatten_inputs(x)
        outputs = [model.apply_fn(params, frozen, inputs) for model in models_of(inputs)]
        return map_leaves(lambda index: None if index is None else outputs[index], structure)

    return _Model(apply_fn, trainable, frozen, _any_float64([*trainable.values(), *frozen.values(), *models[0].inputs]))


def _sampled(apply_fn: Callable[..., PyTree], trace_axes: Axes, samples: int, seed: int) -> Callable[..., PyTree]:
    """An apply_fn of random combinations of each output's traced entries."""

    def sampled(params: Params, x: PyTree, frozen: Params) -> PyTree:
        outputs = apply_fn(params, x, frozen)
        return jax.tree.map(lambda y: sampled_outputs(y, trace_axes, samples, seed), outputs)

    return sampled


def _check_params(params: Params, trainable: Params, frozen: Params) -> None:
    """ValueError unless params are the parameters; variables that no output depends upon may be among them."""
    missing, extra = [p for p in trainable if p not in params], [p for p in frozen if p in params]
    if missing or extra:
        problems = [f"without {missing}"] * bool(missing) + [f"with {extra}, which are not trainable"] * bool(extra)
        raise ValueError(
            f"Expected params to be a dict of the {len(trainable)} variables that get_apply_fn_and_params returns, "
            f"received one {' and '.join(problems)}; for a kernel over all variables pass trainable_only=False to both "
            "functions."
        )


def _output_structure(f: Any) -> PyTree:
    """The structure of a model's outputs, each leaf its index among those that are not None."""
    source = source_of(f)
    specs = map_leaves(lambda named: named.spec, source.inputs)
    traced = tf.function(source.call, autograph=source.autograph).get_concrete_function(specs)
    indices = iter(range(len(traced.outputs)))
    return map_leaves(lambda leaf: None if leaf is None else next(indices), traced.structured_outputs)


def _input_flattener(f: Any, model: FunctionalModel) -> Callable[[PyTree], tuple[Any, ...]]:
    """Brings a structure of inputs into the model's order; dicts go by their keys, since JAX sorts these."""
    paths = [path for path, _ in leaves(source_of(f).inputs)]

    def flatten(x: PyTree) -> tuple[Any, ...]:
        received = dict(leaves(x))
        if len(paths) == len(received) == 1:
            return tuple(received.values())
        if set(received) != set(paths):
            raise ValueError(
                f"Expected x to be a list, tuple or dict of the model's {len(paths)} inputs with leaves at {paths} "
                f"({', '.join(map(str, model.inputs))}), received leaves at {list(received)}."
            )
        return tuple(received[path] for path in paths)

    return flatten


# -------------------------------------------------------------------------------------- functions of parameters


def _is_function(f: Any) -> bool:
    return isinstance(f, tf.types.experimental.PolymorphicFunction)


def _from_function(f: Any) -> _Model:
    if f.input_signature is None or len(f.input_signature) != 2:
        raise ValueError(
            "Expected a tf.function with the signature f(params, x), received one with input_signature="
            f"{f.input_signature}; decorate it with tf.function(input_signature=[specs of params, specs of x])."
        )
    traced = f.get_concrete_function()
    library = Library(traced.graph.as_graph_def().library.function, keep_half=False)
    function = GraphFunction(traced.function_def, library)
    signature = tuple(traced.structured_input_signature[0])
    variables = {id(variable.handle): variable for variable in traced.variables}
    captures = [
        str(index) if tensor.dtype == tf.resource else tensor.numpy()
        for index, tensor in enumerate(traced.captured_inputs)
    ]
    frozen = {
        str(index): variables[id(tensor)].numpy()
        for index, tensor in enumerate(traced.captured_inputs)
        if tensor.dtype == tf.resource
    }

    def apply_fn(params: PyTree, x: PyTree, frozen: Params) -> PyTree:
        _check_structure(signature, (params, x))
        args = map(jnp.asarray, tf.nest.flatten((params, x)))
        held = [jnp.asarray(frozen[c]) if isinstance(c, str) else c for c in captures]
        results = iter(function(*map(widened, args), *map(widened, held)))
        return tf.nest.map_structure(
            lambda leaf: None if leaf is None else jnp.asarray(next(results)), traced.structured_outputs
        )

    return _Model(apply_fn, {}, frozen, _any_float64([*tf.nest.flatten(signature), *frozen.values()]))


def _check_structure(expected: PyTree, received: PyTree) -> None:
    paths, received_paths = (sorted(path for path, _ in leaves(structure)) for structure in (expected, received))
    if paths != received_paths:
        raise ValueError(
            "Expected (params, x) as in the tf.function's input signature, with leaves at "
            f"{paths}, received leaves at {received_paths}."
        )


# ----------------------------------------------------------------------------------------------------------- dtypes


def _is_floating(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


def _any_float64(specs: Sequence[Any]) -> bool:
    """Whether any of these arrays and specs is of 64-bit floats, which JAX only computes with where it is told to."""
    return any(tf.as_dtype(spec.dtype) == tf.float64 for spec in specs)
