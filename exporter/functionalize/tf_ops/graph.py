"""Evaluates TensorFlow function graphs with JAX, node by node.

tf2jax converts single ops well, but its own walk over the graph follows control dependencies, hides which values of a
loop are invariant, evaluates shape arithmetic as traced values, and loses the place of an error. This walk follows
data only, keeps everything known at trace time concrete, and says which layer an error came from.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from exporter.compat.tensorflow_names import op_def_registry, types_pb2
from exporter.errors import ExportError
from exporter.functionalize.tf_ops import registry
from exporter.functionalize.tf_ops.half_precision import in_float32


class Library(Mapping[str, "GraphFunction"]):
    """The functions that a graph calls, by name, converted when first asked for.

    `dynamic_loops` collects the names of the loops whose number of iterations was not known when they were traced;
    JAX cannot differentiate those in reverse. `keep_half` is whether values of half precision are rounded to it.
    """

    def __init__(self, function_defs: Iterable[Any], *, keep_half: bool = True):  # noqa: D107
        self.keep_half = keep_half
        self._function_defs = {proto.signature.name: proto for proto in function_defs}
        self._functions: dict[str, GraphFunction] = {}
        self.dynamic_loops: set[str] = set()

    def __getitem__(self, name: str) -> GraphFunction:  # noqa: D105
        if name not in self._functions:
            self._functions[name] = GraphFunction(self._function_defs[name], self)
        return self._functions[name]

    @property
    def protos(self) -> Mapping[str, Any]:
        """The FunctionDefs, by name."""
        return self._function_defs

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        return iter(self._function_defs)

    def __len__(self) -> int:  # noqa: D105
        return len(self._function_defs)


@dataclasses.dataclass(frozen=True)
class Edge:
    """One output of a node, or (index 0) an argument of the function."""

    name: str
    index: int


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Another function for a node, which takes the node's inputs and, after them, further values of the graph."""

    inputs: tuple[Edge, ...]
    function: registry.OpFunction


def layer_scope(node_name: str) -> str:
    """The name scope of a node, which Keras names after the layers: 'model/dense/MatMul' -> 'model/dense'."""
    return node_name.rpartition("/")[0] or node_name


class GraphFunction:
    """A FunctionDef as a function of JAX arrays: the values of its arguments -> the tuple of its results.

    A variable's handle is given as the variable's value. Numpy arguments are taken as known at trace time. Floating
    arguments may be wider than the graph says (float64 for float32); wider values stay wide. If the library does not
    keep half precision, the function takes and computes float32 in place of float16 and bfloat16.
    """

    def __init__(
        self,
        proto: Any,
        library: Library,
        result: int | None = None,
        replacements: Mapping[str, Replacement] | None = None,
    ):
        """Of the FunctionDef `proto`, all results, or only the one with the index `result`; replacements by node."""
        proto = proto if library.keep_half else in_float32(proto)
        self.name = proto.signature.name
        self.argument_names = tuple(arg.name for arg in proto.signature.input_arg)
        self._argument_types = {arg.name: arg.type for arg in proto.signature.input_arg}
        self._protos = {node.name: node for node in proto.node_def}
        self._library, self._replacements = library, replacements or {}
        results = proto.signature.output_arg if result is None else [proto.signature.output_arg[result]]
        self.results = tuple(self._edge(proto.ret[arg.name]) for arg in results)

    @functools.cached_property
    def nodes(self) -> tuple[Any, ...]:
        """The NodeDefs that the results depend upon by data, inputs first."""
        return tuple(self.before(result.name for result in self.results))

    @functools.cached_property
    def all_nodes(self) -> tuple[Any, ...]:
        """All NodeDefs, also those that no result depends upon, inputs first."""
        return tuple(self.before(self._protos))

    @functools.cached_property
    def unchanged_arguments(self) -> frozenset[int]:
        """The indices i such that result i is argument i as it came in."""
        return frozenset(
            i
            for i, (result, argument) in enumerate(zip(self.results, self.argument_names, strict=False))
            if self.origin(result) == Edge(argument, 0)
        )

    def with_results(self, results: Iterable[Edge]) -> GraphFunction:
        """The same graph with other values for its results."""
        other = copy.copy(self)
        other.results = tuple(results)
        for name, member in vars(GraphFunction).items():
            if isinstance(member, functools.cached_property):
                other.__dict__.pop(name, None)
        return other

    def producer(self, edge: Edge) -> Any:
        """The NodeDef that computes a value, behind Identity nodes; None for an argument."""
        return self._protos.get(self.origin(edge).name)

    def origin(self, edge: Edge) -> Edge:
        """The value that a value is, behind Identity nodes."""
        while edge.name in self._protos and self._protos[edge.name].op == "Identity":
            edge = next(self.inputs(self._protos[edge.name]))
        return edge

    def callees(self) -> Iterator[tuple[Any, GraphFunction]]:
        """The nodes that call functions, each with a function that it calls."""
        for node in self.nodes:
            yield from ((node, callee) for callee in self.called_by(node))

    def called_by(self, node: Any) -> Iterator[GraphFunction]:
        """The functions that a node calls: a call's, a loop's, those of branches."""
        for attr in node.attr.values():
            yield from (self._library[f.name] for f in (attr.func, *attr.list.func) if f.name)

    def named(self, name: str) -> Any:
        """The NodeDef of a name; None for an argument."""
        return self._protos.get(name)

    @functools.cached_property
    def _operations(self) -> tuple[tuple[Any, registry.OpFunction, tuple[Edge, ...]], ...]:
        return tuple((node, self._convert(node), tuple(self.inputs(node))) for node in self.nodes)

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        """Evaluates the graph; ExportError, naming the layer, if an op cannot be evaluated."""
        assert len(args) == len(self.argument_names), (self.name, len(args), len(self.argument_names))
        values: dict[str, Sequence[Any]] = {name: (arg,) for name, arg in zip(self.argument_names, args, strict=True)}
        for node, function, inputs in self._operations:
            operands = [values[edge.name][edge.index] for edge in inputs]
            try:
                _check_integers(node, operands, [self.producer(edge) for edge in inputs])
                result = _evaluate(function, operands)
            except ExportError:
                raise
            except Exception as error:
                raise ExportError(
                    f"The {node.op} operation of layer {layer_scope(node.name)!r} cannot be converted to JAX: {error}"
                ) from error
            values[node.name] = result if isinstance(result, list | tuple) else (result,)
        return tuple(values[edge.name][edge.index] for edge in self.results)

    def _convert(self, node: Any) -> registry.OpFunction:
        if node.name in self._replacements:
            return self._replacements[node.name].function
        clamped = self._clamped_constant(node)
        if clamped is not None:
            return lambda *operands: clamped
        try:
            return registry.convert_node(node, self._library)
        except (KeyError, ValueError, NotImplementedError) as error:
            raise ExportError(
                f"The {node.op} operation of layer {layer_scope(node.name)!r} cannot be converted to JAX: {error}"
            ) from error

    def _clamped_constant(self, node: Any) -> np.ndarray | None:
        """The value of min(c, max(d, x)) with constants c <= d, whatever x is: how tf.math.bincount fixes its size."""
        if node.op != "Minimum":
            return None
        for constant, other in itertools.permutations(self.inputs(node), 2):
            maximum = self.producer(other)
            high = self._constant(constant)
            if high is None or maximum is None or maximum.op != "Maximum":
                continue
            if any(low is not None and np.all(high <= low) for low in map(self._constant, self.inputs(maximum))):
                return high
        return None

    def _constant(self, edge: Edge) -> np.ndarray | None:
        origin = self.producer(edge)
        if origin is None or origin.op != "Const" or origin.attr["dtype"].type == types_pb2.DT_STRING:
            return None
        return tf.make_ndarray(origin.attr["value"].tensor)

    def _edge(self, text: str) -> Edge:
        """Parses 'argument' or 'node:output_name:index'."""
        name, _, output = text.partition(":")
        if not output:
            return Edge(name, 0)
        output_name, _, index = output.partition(":")
        return Edge(name, _output_offset(self._protos[name], output_name) + int(index))

    def inputs(self, node: Any) -> Iterator[Edge]:
        """The values that a node takes, control dependencies aside."""
        yield from (self._edge(text) for text in node.input if not text.startswith("^"))
        if node.name in self._replacements:
            yield from self._replacements[node.name].inputs

    def dtype(self, edge: Edge) -> int:
        """TensorFlow's number of the type of a value."""
        if edge.name not in self._protos:
            return self._argument_types[edge.name]
        return list(_outputs(self._protos[edge.name]))[edge.index][1]

    def before(self, wanted: Iterable[str]) -> Iterator[Any]:
        """The NodeDefs of these names (arguments aside), and all that they depend upon by data, inputs first."""
        done = set(self.argument_names)
        stack = list(wanted)
        while stack:
            name = stack[-1]
            missing = [] if name in done else [e.name for e in self.inputs(self._protos[name]) if e.name not in done]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if name not in done:
                done.add(name)
                yield self._protos[name]


def _output_offset(node: Any, output_name: str) -> int:
    """Which of a node's outputs is the first of this name; 0 for a function called by its name, which has no OpDef."""
    names = [name for name, _ in _outputs(node)]
    return names.index(output_name) if names else 0


def _outputs(node: Any) -> Iterator[tuple[str, int]]:
    """Name and type of each output of a node, those of a list under one name; none if its op is not known."""
    definition = op_def_registry.get(node.op)
    for arg in definition.output_arg if definition is not None else ():
        if arg.type_list_attr:
            types = list(node.attr[arg.type_list_attr].list.type)
        else:
            count = node.attr[arg.number_attr].i if arg.number_attr else 1
            types = [node.attr[arg.type_attr].type if arg.type_attr else arg.type] * count
        yield from ((arg.name, dtype) for dtype in types)


def is_known(value: Any) -> bool:
    """Whether a value is known at trace time: a numpy array, but not one of symbolic dimensions."""
    return isinstance(value, np.ndarray | np.generic) and value.dtype != object


_GROWING = ("Cumprod", "LeftShift", "Mul", "Pow", "Prod", "Square")


def _check_integers(node: Any, operands: list[Any], producers: list[Any]) -> None:
    """Refuses 64-bit integers that 32 bits may not hold, which is what models are computed with.

    That of inputs is checked by the SavedModel, at each request.
    """
    dtypes = {node.attr[name].type for name in ("T", "SrcT", "dtype") if name in node.attr}
    if not dtypes & {types_pb2.DT_INT64, types_pb2.DT_UINT64} or all(map(is_known, operands)):
        return
    known = [np.asarray(a) for a in operands if is_known(a)]
    if any(a.dtype in (np.int64, np.uint64) and a.size and not _fits_32_bits(a) for a in known):
        raise NotImplementedError("it takes a 64-bit integer beyond 32 bits; use smaller ones, or do this before")
    flag = any(p is not None and p.op == "Cast" and p.attr["SrcT"].type == types_pb2.DT_BOOL for p in producers)
    if node.op in _GROWING and not flag:  # times 0 or 1, as tf.math.bincount multiplies, nothing grows
        raise NotImplementedError("it multiplies 64-bit integers, and models are computed with 32; do this before")


def _fits_32_bits(integers: np.ndarray) -> bool:
    """Whether 64-bit integers keep their values as 32-bit ones, signed or not as they are."""
    limits = np.iinfo(np.int32 if integers.dtype == np.int64 else np.uint32)
    return bool(np.min(integers) >= limits.min and np.max(integers) <= limits.max)


def _evaluate(function: registry.OpFunction, operands: list[Any]) -> Any:
    """Applies an op; known operands give known results, so that shapes and loop bounds stay concrete under tracing."""
    if not operands or not all(map(is_known, operands)):
        return function(*operands)
    with jax.ensure_compile_time_eval():
        return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, function(*operands))
