"""The kernel of a model that is being trained, of always the same examples, with the weights that it has now.

It is the export's own module, built for one number of examples and not saved: where the signature is traced once, the
model's weights are assigned to its variables, and TensorFlow computes it where it trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.functionalize.model_kinds import Source, source_of
from exporter.functionalize.structures import leaves
from exporter.graph.building import build_module
from exporter.graph.traced import without_graph_optimizers
from exporter.monitor.sample import Sample
from exporter.plan.choosing import Choice, choose
from exporter.plan.limits import memory_errors
from exporter.plan.planning import Plan, make_plan
from exporter.plan.schedule import Blocks, Schedule
from exporter.plan.signatures import input_names

_SIGNATURE = "ntk_symmetric"


class KernelNow:
    """kernel() -> (n, n) of fixed examples.

    Attributes:
      smallest: with fewer examples than these it would take as long.
    """

    def __init__(self, model: Any, ntk: NtkConfig, sample: Sample, memory: int) -> None:
        """Traces the model.

        Args:
          model: which.
          ntk: which kernel; one number for each pair of examples.
          sample: the examples.
          memory: bytes that intermediate values may take.

        Raises:
          ExportError: the model has no such kernel, or does not take these examples.
        """
        self._source = source_of(model)
        x = sample.inputs_of(self._source)
        export = ExportConfig(
            platforms=_platforms(),
            signatures=(_SIGNATURE,),
            memory_budget=memory,
            input_shapes=_sizes(self._source, x) or None,
        )
        with memory_errors():
            self._plan = make_plan(model, ntk, export)
            if len(self._plan.kernel_shape) != 2:
                shape = self._plan.model.output.shape
                axes = list(range(1, len(shape)))
                raise ExportError(
                    "Expected a kernel of one number for each pair of examples, received more, for outputs of shape "
                    f"{shape}; average over all of their axes: NtkConfig(trace_axes={axes})."
                )
            with self._plan.tracing():
                self._choice = choose(self._plan)
        self.smallest = 0
        self._build(x)

    def take(self, sample: Sample) -> None:
        """Takes other examples, not more than before; fewer than `smallest` are traced for."""
        x = sample.inputs_of(self._source)
        if len(next(iter(x.values()))) < self.smallest:
            self._build(x)
        else:
            self._inputs = _tensors(self._plan, x)

    def __call__(self) -> np.ndarray:
        """The kernel with the weights that the model has now."""
        own = self._plan.model.variables
        for path, variable in {**self._module.params, **self._module.frozen}.items():
            variable.assign(tf.cast(tf.convert_to_tensor(own[path]), variable.dtype))
        return self._function(**self._inputs)["ntk"].numpy()

    def _build(self, x: Mapping[str, np.ndarray]) -> None:
        self._inputs = _tensors(self._plan, x)
        choice = _of_one_size(self._choice, len(next(iter(x.values()))))
        with memory_errors(), self._plan.tracing(), without_graph_optimizers():
            self._module = build_module(self._plan, choice)
        self._function = self._module.signatures_to_save[_SIGNATURE]
        self.smallest = 0 if choice.schedule is None else choice.schedule.blocks.sizes[-1]


def _of_one_size(choice: Choice, n: int) -> Choice:
    """The choice with programs for n examples alone, in memory that was found enough for more."""
    schedule = choice.schedule
    if schedule is None:
        return choice
    if schedule.larger is not None and n > schedule.most:
        schedule = schedule.larger
    block = min(schedule.blocks.sizes[-1], n)
    joined = min(schedule.blocks.joined, -(-n // block))
    resident = schedule.blocks.resident_examples // (block * joined)
    frozen = tuple({min(size, n) for size in schedule.frozen[-1:]})
    blocks = Blocks((block,), resident, joined)
    return dataclasses.replace(choice, schedule=Schedule(schedule.parts, blocks, frozen=frozen))


def _sizes(source: Source, x: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The sizes that x has on the axes that a model leaves open, by input."""
    shapes = {named.name: named.spec.shape.as_list() for _, named in leaves(source.inputs)}
    sizes = {
        name: tuple(given for size, given in zip(shape[1:], x[name].shape[1:], strict=True) if size is None)
        for name, shape in shapes.items()
    }
    return {name: of_input for name, of_input in sizes.items() if of_input}


def _tensors(plan: Plan, x: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """The signature's arguments."""
    specs = plan.model.signature_inputs
    values = (a if spec.dtype == "string" else a.astype(spec.dtype) for spec, a in zip(specs, x.values(), strict=True))
    return dict(zip(input_names("x", specs), map(tf.constant, values), strict=True))


def _platforms() -> tuple[str, ...]:
    """What TensorFlow computes on here."""
    if not tf.config.list_physical_devices("GPU"):
        return ("cpu",)
    return ("cpu", "rocm" if tf.test.is_built_with_rocm() else "cuda")
