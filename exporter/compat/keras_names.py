"""What is used of Keras 3 and tf_keras that is not their public API. Seen in Keras 3.15, tf_keras 2.21."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

# ------------------------------------------------------------------------------------------------------------ Keras 3


def functional_of(sequential: Any) -> Any:
    """The functional model that a built Sequential calls."""
    return sequential._functional


def inputs_of(model: Any) -> Any:
    """The structure of a functional model's KerasTensors, whose public form is flat; None of another model."""
    return getattr(model, "_inputs_struct", None)


def operation_of(tensor: Any) -> Any:
    """The layer that a KerasTensor is from."""
    return tensor._keras_history.operation


def recorded_shapes(model: Any) -> Mapping[str, Any] | None:
    """The shapes of the arguments that a model was first called with, by their names; None if it was not."""
    return getattr(model, "_build_shapes_dict", None)


def layers_in(layer: Any) -> Sequence[Any]:
    """The layers that a layer holds itself; public for models only."""
    return layer._layers


def all_layers_in(model: Any) -> Sequence[Any]:
    """A model and the layers in it, and in these."""
    return model._flatten_layers()


def own_variables(layer: Any) -> Sequence[Any]:
    """A layer's variables without those of the layers in it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


# --------------------------------------------------------------------------------------------------- Keras 2 (tf_keras)


def keras2_safe_mode(enabled: bool) -> AbstractContextManager[None]:
    """Safe mode for HDF5 files as well; the argument of `load_model` is for archives only."""
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    return SafeModeScope(enabled)
