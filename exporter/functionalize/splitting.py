"""Splits a model's graph where its first part stays TensorFlow, or is frozen.

An operation without JAX form, such as a table's lookup, has no derivative either. Where it depends on no trainable
variable, it and all that it depends upon go into the front; what the rest takes of them are its inputs. So that the
rest is a model like any other, these must have the batch axis and one shape for every example: what takes a value that
has not, a ragged tensor's say, goes into the front too.

What is computed of the inputs by frozen variables alone, as a backbone under a new head is, is split off likewise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.compat.tensorflow_names import function_pb2, types_pb2
from exporter.errors import ExportError
from exporter.functionalize.examples import Examples
from exporter.functionalize.front import Front, front_function
from exporter.functionalize.tables import copied_table
from exporter.functionalize.tf_ops import Edge, GraphFunction, Library, flattened, operations_without_jax
from exporter.functionalize.tracing import ModelVariable, TensorSpec, TracedModel
from exporter.functionalize.vocabularies import Vocabulary, vocabularies

_SHAPE_ONLY = ("Rank", "Shape", "Size")  # of these a text's value does not matter
_HANDLES = (types_pb2.DT_VARIANT, types_pb2.DT_RESOURCE)  # JAX has them from no other side
_BATCHES = (13, 7)  # examples, no sizes that a tensor is likely to have


@dataclasses.dataclass(frozen=True)
class Split:
    """A model in two parts.

    Attributes:
      front: the first, in TensorFlow.
      specs: what it gives.
      rest: the second, a function of that and of captures.
      captures: the values of these, ModelVariables and constants.
      first: the first as a function of the model's inputs, then of its captures.
    """

    front: Front
    specs: tuple[TensorSpec, ...]
    rest: GraphFunction
    captures: list[Any]
    first: GraphFunction


class Splitting:
    """A model's graph of one output, flattened, with what is known about its nodes.

    Attributes:
      function: the graph.
      tables: copies of the tables that it captures, by the name of the argument.
    """

    def __init__(self, traced: TracedModel, library: Library, output: int) -> None:
        """Takes the graph of the output with this index; ExportError if it captures other than variables and tables."""
        self._traced, self._library = traced, library
        proto = flattened(traced.function.function_def, library.protos)
        self.function = GraphFunction(proto, library, result=output)
        self._result = proto.ret[proto.signature.output_arg[output].name]
        names = self.function.argument_names
        self._own, captured = names[: len(traced.inputs)], names[len(traced.inputs) :]
        self._captures = dict(zip(captured, traced.captures, strict=True))
        self.tables = {
            name: copied_table(tensor, self.function, traced.name)
            for name, tensor in self._captures.items()
            if isinstance(tensor, tf.Tensor) and tensor.dtype == tf.resource
        }
        trainable = {n for n, v in self._captures.items() if isinstance(v, ModelVariable) and v.trainable}
        self._trained = self._behind(trainable)
        self._fed = self._behind(set(self._own))
        self._opaque: set[str] = set()
        for node in self.function.all_nodes:  # inputs first
            if self._is_opaque(node):
                self._opaque.add(node.name)

    def split_frozen(self, chosen: Collection[str], examples: Examples) -> Split | None:
        """The model in two parts, the first what is computed of inputs and variables without the `chosen` ones.

        None if some of it has no JAX form, no such variables come in, or what the rest takes has no batch axis.
        """
        variables = {name: v.path for name, v in self._captures.items() if isinstance(v, ModelVariable)}
        self._trained = self._behind({name for name, path in variables.items() if path in chosen})
        frozen = self._behind({name for name, path in variables.items() if path not in chosen})
        first = self._fed & frozen - self._trained
        if self._opaque or not first or {edge.name for edge in self.function.results} & first:
            return None
        self._opaque = first
        try:
            return self.split(examples)
        except ExportError:  # nothing must be apart here
            return None

    def split(self, examples: Examples) -> Split:
        """The model in two parts.

        Args:
          examples: of the model's inputs, from which the shapes in between are known.

        Raises:
          ExportError: an operation without JAX form depends on a trainable variable, examples do not pass the front, or
            the rest takes values that have no batch axis or other shapes for other examples.
        """
        batches = [examples(n, seed) for seed, n in enumerate(_BATCHES)]
        batches += [tuple(a[k : k + 1] for a in batches[0]) for k in range(3)]
        while True:
            edges = self._boundary()
            fed = [edge for edge in edges if edge.name in self._fed or edge.name in self._own]
            front = self._front(fed)
            values = [self._run(front, batch, examples) for batch in batches]
            shapes = [[tensors[i].shape for tensors in values] for i in range(len(fed))]
            unfit = {edge: found for edge, found in zip(fed, shapes, strict=True) if not _is_batched(found, batches)}
            if not unfit:
                break
            self._opaque |= {node.name for node in self._takers(unfit)}
        fixed = [edge for edge in edges if edge not in fed]
        constants = front_function(self.function, self._library, [], self._handles, fixed)() if fixed else []
        specs = tuple(
            TensorSpec(edge.name.replace("/", "_"), (None, *tensor.shape[1:]), tensor.dtype.name)
            for edge, tensor in zip(fed, values[0], strict=True)
        )
        captures = [*self._captures.values(), *(tensor.numpy() for tensor in constants)]
        return Split(front, specs, self._rest(fed, fixed), captures, self.function.with_results(fed))

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """What the inputs can be drawn from, by name."""
        return vocabularies(self.function, self._traced.inputs, self.tables)

    def _behind(self, arguments: set[str]) -> set[str]:
        """The names of the nodes that depend on one of these arguments."""
        names: set[str] = set()
        for node in self.function.all_nodes:
            if any(edge.name in names or edge.name in arguments for edge in self.function.inputs(node)):
                names.add(node.name)
        return names

    def _is_opaque(self, node: Any) -> bool:
        """Whether a node has no JAX form, by its op or by what it takes."""
        if node.op in _SHAPE_ONLY:
            return False
        if operations_without_jax(self.function, node):
            return True
        dtypes = {edge: self.function.dtype(edge) for edge in self.function.inputs(node)}
        return any(
            dtype == types_pb2.DT_STRING or (dtype in _HANDLES and edge.name in self._opaque)
            for edge, dtype in dtypes.items()
        )

    def _boundary(self) -> list[Edge]:
        """The values that the rest takes: of opaque nodes, of inputs; ExportError if one depends on a variable."""
        edges = list(self._taken())
        behind: dict[str, set[str]] = {}
        for node in self.function.before(edge.name for edge in edges if edge.name in self._trained):
            if node.name in self._trained & self._opaque:
                operations = operations_without_jax(self.function, node) or {node.op: {node.name}}
                for op, layers in operations.items():
                    behind.setdefault(op, set()).update(layers)
        if behind:
            raise _unsupported(self._traced.name, behind)
        return edges

    def _taken(self) -> Iterator[Edge]:
        """The values of opaque nodes and of inputs that the result depends upon directly, or by nodes with JAX form."""
        seen: set[Edge] = set()
        stack = list(self.function.results)
        while stack:
            edge = stack.pop()
            if edge in seen:
                continue
            seen.add(edge)
            is_text = self.function.dtype(edge) == types_pb2.DT_STRING
            if edge.name in self._own or edge.name in self._opaque or is_text:
                yield edge
            elif (node := self.function.named(edge.name)) is not None:
                stack.extend(self.function.inputs(node))

    def _takers(self, edges: Mapping[Edge, Sequence[Any]]) -> list[Any]:
        """The nodes that take these values; ExportError if a variable comes in there, or it is the output itself."""
        takers = []
        for edge, shapes in edges.items():
            of_edge = [
                node
                for node in self.function.nodes
                if node.name not in self._opaque and edge in self.function.inputs(node)
            ]
            trained = [node.name for node in of_edge if node.name in self._trained]
            if trained or not of_edge:
                raise ExportError(
                    f"Expected the preprocessing in front of {self._traced.name!r} to give tensors with the batch on "
                    f"axis 0 and one shape for every example, received {edge.name!r} of shapes {shapes[0]}, "
                    f"{shapes[1]} and {shapes[2]} for {_BATCHES[0]}, {_BATCHES[1]} and 1 examples, which "
                    f"{(trained or ['the output'])[0]!r} takes. Pad or cut to a fixed length, for instance with "
                    "output_sequence_length, or fix open axes of the inputs with export.input_shapes."
                )
            takers += of_edge
        return takers

    @property
    def _handles(self) -> dict[str, Any]:
        """What the front captures, by the name of the argument."""
        variables = {n: v.variable for n, v in self._captures.items() if isinstance(v, ModelVariable)}
        return {**self._captures, **variables, **self.tables}

    def _front(self, edges: Sequence[Edge]) -> Front:
        passed = [self._own.index(edge.name) if self._is_passed(edge) else None for edge in edges]
        computed = [edge for edge, place in zip(edges, passed, strict=True) if place is None]
        nodes = list(self.function.before(edge.name for edge in computed))
        checks = [node.name for node in self._checks()]
        function = front_function(self.function, self._library, self._traced.specs, self._handles, computed, checks)
        operations = {op for node in nodes for op in operations_without_jax(self.function, node)}
        return Front(self._traced.inputs, function, passed, self._held(function), operations)

    def _held(self, function: Any) -> list[Any]:
        captured = {id(tensor) for tensor in function.captured_inputs}
        variables = [v.variable for v in self._captures.values() if isinstance(v, ModelVariable)]
        held = [v for v in variables if id(v.handle) in captured]
        return held + [table for table in self.tables.values() if id(table.resource_handle) in captured]

    def _is_passed(self, edge: Edge) -> bool:
        return edge.name in self._own and self.function.dtype(edge) != types_pb2.DT_STRING

    def _checks(self) -> list[Any]:
        """The assertions about inputs, which TensorFlow makes in any case and JAX cannot."""

        def asserts(function: GraphFunction, node: Any) -> bool:
            return node.op == "Assert" or any(
                asserts(callee, inner) for callee in function.called_by(node) for inner in callee.all_nodes
            )

        return [
            node
            for node in self.function.all_nodes
            if node.name in self._fed and node.name not in self._trained and asserts(self.function, node)
        ]

    def _run(self, front: Front, batch: tuple[np.ndarray, ...], examples: Examples) -> tuple[np.ndarray, ...]:
        try:
            return front.run(batch)
        except tf.errors.OpError as error:
            cure = "Set export.examples to a file with real inputs" if examples.drawn else "Correct export.examples"
            reason = error.message.partition("\n\t [[")[0].splitlines()[-1]  # without nodes, and where these were made
            raise ExportError(
                f"Expected the preprocessing in front of {self._traced.name!r} to take {examples.origin}, received "
                f"from {', '.join(front.operations)}: {reason.rstrip('.')}. {cure}."
            ) from error

    def _rest(self, fed: Sequence[Edge], fixed: Sequence[Edge]) -> GraphFunction:
        """The graph behind the front, a function of its values, then of captures, then of constants."""
        names = {edge: f"__front_{i}" for i, edge in enumerate((*fed, *fixed))}  # no node's name begins so
        proto = function_pb2.FunctionDef()
        proto.signature.name = self.function.name
        for name in [*(names[e] for e in fed), *self._captures, *(names[e] for e in fixed)]:
            proto.signature.input_arg.add(name=name)
        proto.signature.output_arg.add(name="result")
        (result,) = self.function.results
        proto.ret["result"] = names.get(result, self._result)
        for node in self.function.nodes:
            copy = proto.node_def.add()
            copy.CopyFrom(node)
            copy.input[:] = [
                names.get(edge, text) for edge, text in zip(self.function.inputs(node), node.input, strict=True)
            ]
        return GraphFunction(proto, self._library)


def _unsupported(model_name: str, operations: Mapping[str, set[str]]) -> ExportError:
    """That a model has operations without JAX form where they must have one: op -> the layers that it is in."""
    return ExportError(
        f"Expected {model_name!r} to consist of operations that can be converted to JAX, received "
        f"{with_layers(operations)}. Replace these layers, or move them before the model if they are "
        "preprocessing."
    )


def with_layers(operations: Mapping[str, set[str]]) -> str:
    """Operations and their layers, for people."""
    return "; ".join(f"{op} (in {', '.join(sorted(layers))})" for op, layers in sorted(operations.items()))


def _is_batched(shapes: Sequence[Any], batches: Sequence[tuple[np.ndarray, ...]]) -> bool:
    """Whether values computed from batches have their number of examples on axis 0, and all else alike."""
    return all(len(s) > 0 and s[0] == len(b[0]) for s, b in zip(shapes, batches, strict=True)) and (
        len({tuple(s[1:]) for s in shapes}) == 1
    )
