"""How far an estimated trace is from the exact one, on the examples of the verification."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from exporter.artefact.oracle import SHARE
from exporter.ntk.layerwise.engine import layerwise_kernel_fn
from exporter.plan.planning import Plan

MOST_EXAMPLES = 4

_RATE = 5e10  # float32 operations a second that are counted on, of two CPU cores


@dataclasses.dataclass(frozen=True)
class TraceError:
    """What was measured, relative to the largest entry of the kernel.

    Attributes:
      samples: random combinations of the outputs.
      outputs: how many outputs they are of.
      seed: of their signs.
      examples: of which the kernel was computed.
      deviation: the entries' standard deviation over seeds, told by that of the samples (root mean square); None of one
        sample.
      difference: the largest difference from the exact kernel; None if that takes too long.
    """

    samples: int
    outputs: int
    seed: int
    examples: int
    deviation: float | None
    difference: float | None

    @property
    def summary(self) -> str:
        """For people, in a line."""
        told = [f"{self.samples} of {self.outputs} outputs' combinations"]
        told += [f"deviation {self.deviation:.1e}"] if self.deviation is not None else []
        told += [f"{self.difference:.1e} from exact"] if self.difference is not None else []
        return ", ".join(told)


def trace_error(plan: Plan, examples: int) -> TraceError | None:
    """Measures it on at most so many examples; None if the trace is exact."""
    samples = plan.ntk.trace_samples
    if samples is None:
        return None
    model, estimated = plan.model, plan.differentiated
    x = model.behind_front(model.examples(examples))
    (axis, *others), diagonal = plan.ntk.trace_axes, plan.ntk.diagonal_axes
    each = layerwise_kernel_fn(
        estimated.apply_fn, trace_axes=others, diagonal_axes=(*diagonal, axis), coupled=plan.coupled
    )
    place = 2 + sum(1 if a in diagonal else 2 for a in range(1, axis) if a not in others)
    arguments = model.trainable, model.frozen, x
    kernels = np.moveaxis(np.asarray(jax.jit(each)(*arguments), np.float64), place, -1)
    largest = float(np.max(np.abs(kernels.mean(-1)))) or 1.0
    deviation, difference = None, None
    if samples > 1:
        deviation = math.sqrt(float(np.mean(kernels.var(-1, ddof=1))) / samples) / largest
    exact_flops = plan.flops_of_example * plan.traced_outputs / samples
    if examples * exact_flops <= SHARE * plan.export.verify.seconds * _RATE:
        exact_fn = layerwise_kernel_fn(
            model.apply_fn,
            trace_axes=plan.ntk.trace_axes,
            diagonal_axes=plan.ntk.diagonal_axes,
            coupled=plan.coupled,
        )
        exact = np.asarray(jax.jit(exact_fn)(*arguments), np.float64)
        difference = float(np.max(np.abs(kernels.mean(-1) - exact)) / np.max(np.abs(exact)))
    return TraceError(samples, plan.traced_outputs, plan.ntk.trace_seed, examples, deviation, difference)
