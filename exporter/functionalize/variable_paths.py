"""Paths of a Keras 3 model's variables, in one form for the model in memory and for its files: the `.keras` file's.

Keras gives a variable its path where it is made: the names of the layers that are being built at that moment. So
`v.path` depends on a model's history: a `keras.Sequential(name="net")` has `net/head/kernel`, and `head/kernel` once
it was saved and loaded, since loading builds each layer that the file holds by itself, the inner ones first. Here a
path follows from the model alone. It begins with the innermost layer that a file holds by itself, which is the model,
and what is in the configuration of something that a file holds; then come the names of the layers that this one makes
itself. A model's name is only in it if the model is made by a layer, as a `Sequential` in a subclassed model's
constructor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from exporter.compat.keras_names import inputs_of, layers_in, own_variables


def variable_paths(model: Any) -> list[tuple[str, Any]]:
    """The variables of a Keras 3 model, in its order, each with its path, which others may have too."""
    paths: dict[int, str] = {}
    for path, variable in _walk(model, (model.name,), True, set()):
        paths.setdefault(id(variable), path)
    return [(paths.get(id(variable), variable.path), variable) for variable in model.variables]


def _walk(layer: Any, scope: tuple[str, ...], in_file: bool, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The variables in a layer, those of the layers in it first: a wrapper also tracks its layer's as its own.

    Args:
      layer: which.
      scope: names that its own variables' paths begin with.
      in_file: whether a file holds it by itself.
      seen: ids of the layers that were walked through.
    """
    if id(layer) in seen:
        return
    seen.add(id(layer))
    is_model = isinstance(layer, keras.Model)
    # A functional model's layers were built when they were called, outside of it; those of a model that a file holds
    # are when the loaded model is called on the shapes of its inputs.
    inner = () if inputs_of(layer) is not None or (is_model and in_file) else scope
    holds_all = is_model and type(layer).__module__.startswith("keras.")  # Keras' own: functional and Sequential
    held = frozenset() if holds_all or not in_file or not layers_in(layer) else _held(layer)
    for child in layers_in(layer):
        child_in_file = in_file and (holds_all or type(child).__name__ in held)
        yield from _walk(child, (*(() if child_in_file else inner), child.name), child_in_file, seen)
    for variable in own_variables(layer):
        yield "/".join((*scope, variable.name)), variable


def _held(layer: Any) -> frozenset[str]:
    """The classes of the objects that the configuration of a layer holds."""
    try:
        config = layer.get_config()
    except Exception:  # the user's code; without a configuration the layer cannot be saved, and nothing is held
        return frozenset()
    return frozenset(_classes(config))


def _classes(config: Any) -> Iterator[str]:
    if isinstance(config, dict) and "class_name" in config and "config" in config:
        yield config["class_name"]
    elif isinstance(config, dict | list | tuple):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _classes(value)
