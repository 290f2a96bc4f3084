"""From a plan to the module that is saved, or computed with as it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from exporter.graph.kernel_module import KernelModule
from exporter.graph.programs import FrozenRows, functions_by_blocks, functions_of_whole_batches
from exporter.plan.choosing import Choice
from exporter.plan.planning import Plan
from exporter.plan.schedule import count_traces
from exporter.progress import Note, silent


def build_module(plan: Plan, choice: Choice, note: Note = silent) -> KernelModule:
    """The planned signatures as TensorFlow functions, on variables of their own; `note` is told how far it is."""
    model, names, platforms, precision = plan.model, plan.export.signatures, plan.export.platforms, plan.ntk.precision
    references = None
    if choice.schedule is None:
        kernel = plan.kernel(choice.implementation)
        functions = functions_of_whole_batches(model, kernel, names, platforms=platforms, precision=precision)
    else:
        functions, references = functions_by_blocks(
            model,
            choice.schedule,
            names,
            swap=plan.swap,
            platforms=platforms,
            precision=precision,
            flops=plan.flops_of_example,
            projected=choice.projected,
            lowered=_counted(count_traces(names, choice.schedule), note),
        )
    rows = None
    if model.frozen_part is not None:
        assert choice.schedule is not None
        sizes = choice.schedule.frozen
        rows = FrozenRows(model.frozen_part, model.signature_inputs, sizes, platforms=platforms, precision=precision)
    return KernelModule(
        model.trainable,
        model.all_frozen,
        model.signature_inputs,
        functions,
        front=model.front if rows is None else None,
        frozen_part=rows,
        computed_with=list(model.frozen),
        behind=model.inputs,
        references=references,
    )


def _counted(total: int, note: Note) -> Callable[[], None]:
    """What tells, whenever it is called, of one function more."""
    count = itertools.count(1)

    def lowered() -> None:
        done = next(count)
        note(f"{done} of {total} functions", done, total)

    return lowered
