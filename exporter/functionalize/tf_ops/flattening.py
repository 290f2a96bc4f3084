"""A graph with the functions that it calls put in place of the calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.compat.tensorflow_names import function_pb2

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def flattened(proto: Any, functions: Mapping[str, Any]) -> Any:
    """The FunctionDef `proto` with the nodes of called functions in place of its calls; branches and loops stay.

    A node of a called function is named behind the call, as layers are behind their model. Control dependencies are
    left out.

    Args:
      proto: a FunctionDef.
      functions: FunctionDefs of called functions, by name.
    """
    flat = function_pb2.FunctionDef(signature=proto.signature)
    same: dict[str, str] = {}  # a call's output, or a called function's argument -> the value that it is

    def add(body: Any, prefix: str) -> None:
        for node in body.node_def:
            name = prefix + node.name
            inputs = [prefix + text for text in node.input if not text.startswith("^")]
            if node.op in _CALLS:
                callee, inside = functions[node.attr["f"].func.name], f"{name}/"
                arguments = [inside + arg.name for arg in callee.signature.input_arg]
                same.update(zip(arguments, inputs, strict=True))
                for i, arg in enumerate(callee.signature.output_arg):
                    same[f"{name}:output:{i}"] = inside + callee.ret[arg.name]
                add(callee, inside)
            else:
                copy = flat.node_def.add()
                copy.CopyFrom(node)
                copy.name = name
                copy.input[:] = inputs
                copy.attr.pop("_class", None)  # names nodes to be placed with

    def origin(text: str) -> str:
        while text in same:
            text = same[text]
        return text

    add(proto, "")
    for node in flat.node_def:
        node.input[:] = map(origin, node.input)
    for result, text in proto.ret.items():
        flat.ret[result] = origin(text)
    return flat
