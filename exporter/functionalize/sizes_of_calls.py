"""A model at the sizes that it is called with, for axes that it leaves open; for each it is traced once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from exporter.errors import ExportError
from exporter.functionalize.functional_model import FunctionalModel, functionalize
from exporter.functionalize.model_kinds import source_of
from exporter.functionalize.structures import leaves

_EXAMPLE_SIZES = (32, 64, 128, 256)  # some models take no small images

Sizes = tuple[tuple[str, tuple[int, ...]], ...]  # by input


class ModelAtSizesOfCalls:
    """A model for each of its outputs, at the sizes of the inputs of a call.

    Attributes:
      example: the model for each of its outputs, at sizes that it takes: its variables are those at any sizes.
    """

    def __init__(self, model: Any) -> None:
        """Traces the model once; ExportError if it cannot be used at any of the sizes tried."""
        self._model = model
        self._at: dict[Sizes, list[FunctionalModel]] = {}
        self._open: list[tuple[int, str, list[int]]] = []  # position, name and open axes of inputs that have any
        for position, (_, named) in enumerate(leaves(source_of(model).inputs)):
            shape = getattr(named.spec, "shape", tf.TensorShape(None))
            sizes = shape.as_list() if shape.rank else []
            if axes := [axis for axis, size in enumerate(sizes) if axis and size is None]:
                self._open.append((position, named.name, axes))
        self.example = self._at_example_sizes()

    def __call__(self, inputs: Sequence[Any]) -> list[FunctionalModel]:
        """The model for each of its outputs at the sizes of these inputs; ValueError if one lacks axes."""
        for position, name, _ in self._open:
            expected = self.example[0].inputs[position].shape
            if np.ndim(inputs[position]) != len(expected):
                raise ValueError(
                    f"Expected input {name!r} with {len(expected)} axes, received shape {np.shape(inputs[position])}."
                )
        return self._at_sizes(
            tuple((name, tuple(np.shape(inputs[k])[axis] for axis in axes)) for k, name, axes in self._open)
        )

    def _at_example_sizes(self) -> list[FunctionalModel]:
        problems = []
        for size in _EXAMPLE_SIZES if self._open else _EXAMPLE_SIZES[:1]:
            try:
                return self._at_sizes(tuple((name, (size,) * len(axes)) for _, name, axes in self._open))
            except ExportError as error:
                problems.append(error)
        raise problems[0]

    def _at_sizes(self, sizes: Sizes) -> list[FunctionalModel]:
        if sizes not in self._at:
            # A caller may be a function that TensorFlow or JAX is tracing.
            with tf.init_scope(), jax.ensure_compile_time_eval():
                first = functionalize(self._model, output=0, input_shapes=dict(sizes))
                others = range(1, len(first.outputs))
                self._at[sizes] = [
                    first,
                    *(functionalize(self._model, output=i, input_shapes=dict(sizes)) for i in others),
                ]
        return self._at[sizes]
