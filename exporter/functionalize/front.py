"""The part of a model that stays TensorFlow, in front of what is computed with JAX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.functionalize.tf_ops import Edge, GraphFunction, Library
from exporter.functionalize.tracing import TensorSpec


class Front(tf.Module):
    """A function of a model's own inputs: the tensors that the rest of the model begins with.

    It holds the tables and variables that it reads, so that a SavedModel that holds it has them too. As it is
    TensorFlow all through, it takes texts, 64-bit integers and files of images, and gives numbers.

    Attributes:
      inputs: the model's own inputs.
      operations: what it was made for: the names of the operations without JAX form.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        function: Any,
        passed: Sequence[int | None],
        held: Sequence[Any],
        operations: Iterable[str],
    ) -> None:
        """Takes its parts.

        Args:
          inputs: the model's own inputs.
          function: the concrete function of them; its results are those that are not `passed`.
          passed: for each result the index of the input that it is, unchanged; None for one that is computed.
          held: the tables and variables that the function captures.
          operations: names of operations without JAX form.
        """
        super().__init__(name="front")
        self.inputs, self.operations = tuple(inputs), tuple(sorted(set(operations)))
        self._function, self._passed, self._held = function, tuple(passed), list(held)

    def __call__(self, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The results for a batch; inputs that it computes with are taken in the model's own dtypes."""
        own = [
            tf.cast(a, spec.dtype) if a.dtype != spec.dtype else a for a, spec in zip(inputs, self.inputs, strict=True)
        ]
        computed = iter(self._function(*own))
        return [next(computed) if place is None else inputs[place] for place in self._passed]

    def run(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The same for arrays."""
        return tuple(tensor.numpy() for tensor in self(list(map(tf.convert_to_tensor, inputs))))


def front_function(
    function: GraphFunction,
    library: Library,
    specs: Sequence[tf.TensorSpec],
    captures: Mapping[str, Any],
    results: Sequence[Edge],
    checks: Iterable[str] = (),
) -> Any:
    """A concrete function that computes values of a graph as TensorFlow does.

    Args:
      function: the graph, flattened.
      library: what it calls.
      specs: of the model's inputs, the graph's first arguments.
      captures: for each other argument that the values depend upon a tensor, or an object with a handle.
      results: the values; of a text its shape is all that anyone can ask for, so a boolean takes its place.
      checks: nodes that are run for their effect.
    """
    own = function.argument_names[: len(specs)]
    nodes = list(function.before([*(edge.name for edge in results), *checks]))
    graph = _graph_def(function, library, nodes)
    texts = [function.dtype(edge) == tf.string.as_datatype_enum for edge in results]

    def compute(*inputs: tf.Tensor) -> list[tf.Tensor]:
        values = dict(zip(own, inputs, strict=True))
        feeds = {
            f"{name}:0": values[name] if name in values else tf.convert_to_tensor(_handle(captures[name]))
            for name in _arguments(function, nodes)
        }
        wanted = [f"{edge.name}:{edge.index}" for edge in results if edge.name not in values]
        computed = iter(tf.graph_util.import_graph_def(graph, feeds, wanted, name=""))
        found = [values[edge.name] if edge.name in values else next(computed) for edge in results]
        return [tf.zeros_like(a, tf.bool) if is_text else a for a, is_text in zip(found, texts, strict=True)]

    return tf.function(compute, autograph=False).get_concrete_function(*specs)


def _handle(captured: Any) -> Any:
    """What a graph captures of a table or a variable; a tensor is that itself."""
    if isinstance(captured, tf.Variable):
        return captured.handle
    return getattr(captured, "resource_handle", captured)


def _arguments(function: GraphFunction, nodes: Sequence[Any]) -> list[str]:
    """The arguments that nodes take directly."""
    taken = {edge.name for node in nodes for edge in function.inputs(node)}
    return [name for name in function.argument_names if name in taken]


def _graph_def(function: GraphFunction, library: Library, nodes: Sequence[Any]) -> Any:
    """Nodes as a GraphDef, with a placeholder for each argument that they take."""
    graph = tf.compat.v1.GraphDef()
    graph.versions.producer = tf.version.GRAPH_DEF_VERSION
    for name in _arguments(function, nodes):
        placeholder = graph.node.add(name=name, op="Placeholder")
        placeholder.attr["dtype"].type = function.dtype(Edge(name, 0))
    for node in nodes:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [f"{edge.name}:{edge.index}" for edge in function.inputs(node)]
    called: dict[str, Any] = {}
    stack = [callee for node in nodes for callee in function.called_by(node)]
    while stack:
        callee = stack.pop()
        if callee.name not in called:
            called[callee.name] = library.protos[callee.name]
            stack.extend(inner for node in callee.all_nodes for inner in callee.called_by(node))
    graph.library.function.extend(called.values())
    return graph
