"""What examples of a model's inputs can be drawn from: the vocabularies that its graph holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.functionalize.tf_ops import Edge, GraphFunction
from exporter.functionalize.tracing import TensorSpec

_HASHES = ("StringToHashBucket", "SparseCross", "Fingerprint")  # they take any text
_SPLITS = ("StringSplit", "StringNGrams", "UnicodeDecode")
_WORDS = 64
_LONGEST = 6  # tokens of a text


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What an input's values are drawn from: `tokens`, or where the model splits texts several with spaces between."""

    tokens: tuple[Any, ...]
    joined: bool = False

    def draw(self, shape: Sequence[int], dtype: str, seed: int) -> np.ndarray:
        """An array of random values; others for each seed, and as many at the beginning alike for any length."""
        rng = np.random.default_rng(seed)
        values = np.empty(shape, object if dtype == "string" else dtype)
        for index in np.ndindex(*shape):
            count = int(rng.integers(1, _LONGEST + 1)) if self.joined else 1
            tokens = [self.tokens[i] for i in rng.integers(len(self.tokens), size=count)]
            values[index] = b" ".join(tokens) if dtype == "string" else tokens[0]
        return values


def vocabularies(
    function: GraphFunction, inputs: Sequence[TensorSpec], tables: Mapping[str, tf.lookup.StaticHashTable]
) -> dict[str, Vocabulary]:
    """For the names of inputs that are texts or numbers of tables what they can be drawn from.

    A text is drawn from the keys of the tables that it reaches, or from made-up words if it is hashed or not used.
    Those of which nothing is known, files of images say, are left out.

    Args:
      function: a flattened graph, whose first arguments are the inputs.
      inputs: these.
      tables: that the graph captures, by the name of the argument.
    """
    found: dict[str, Vocabulary] = {}
    for argument, spec in zip(function.argument_names, inputs, strict=False):
        is_text = spec.dtype == "string"
        if not (is_text or np.issubdtype(np.dtype(spec.dtype), np.integer)):
            continue
        nodes = list(_reached(function, argument, tables))
        keys = {
            key
            for node in nodes
            for table in _tables_of(function, node, tables)
            if (table.key_dtype == tf.string) == is_text
            for key in table.export()[0].numpy().tolist()
        }
        operations = {op for node in nodes for op in _operations(function, node)}
        if is_text and not keys and (not nodes or any(op.startswith(_HASHES) for op in operations)):
            keys = {f"word{i}".encode() for i in range(_WORDS)}
        if keys:
            found[spec.name] = Vocabulary(tuple(sorted(keys)), any(op.startswith(_SPLITS) for op in operations))
    return found


def _reached(function: GraphFunction, argument: str, tables: Mapping[str, Any]) -> Iterator[Any]:
    """The nodes whose values depend on an argument, up to those that look it up."""
    reached = {argument}
    for node in function.nodes:
        if any(edge.name in reached for edge in function.inputs(node)):
            yield node
            if not list(_tables_of(function, node, tables)):
                reached.add(node.name)


def _tables_of(function: GraphFunction, node: Any, tables: Mapping[str, Any]) -> Iterator[Any]:
    """The tables that a node takes."""
    for edge in function.inputs(node):
        origin: Edge = function.origin(edge)
        if origin.name in tables:
            yield tables[origin.name]


def _operations(function: GraphFunction, node: Any) -> Iterator[str]:
    """The op of a node, and those of the functions that it calls."""
    yield node.op
    for callee in function.called_by(node):
        for inner in callee.nodes:
            yield from _operations(callee, inner)
