"""Nested dicts, lists and tuples: the structures of models' inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


def leaves(structure: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, lists and tuples, each with its path, keys and indices joined by '/'."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(structure, Mapping):
        items = structure.items()
    elif isinstance(structure, list | tuple):
        items = zip(getattr(structure, "_fields", range(len(structure))), structure, strict=True)
    else:
        yield path, structure
        return
    for key, value in items:
        yield from leaves(value, f"{path}/{key}" if path else str(key))


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """The structure with every leaf replaced by function(leaf), in the order of `leaves`."""
    if isinstance(structure, Mapping):
        return {key: map_leaves(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        values = [map_leaves(function, value) for value in structure]
        return type(structure)(*values) if hasattr(structure, "_fields") else type(structure)(values)
    return function(structure)
