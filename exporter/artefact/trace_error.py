"""Estimated traces in float64, and how far they are from the exact ones, on the examples of the verification."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exporter.artefact.oracle import SHARE, Batch, Oracle, Proof, Shares
from exporter.config import NtkConfig
from exporter.functionalize import FunctionalModel
from exporter.ntk.count_sketch import Sketch
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


class SampledOracle:
    """Kernels in float64 of estimated traces, from those of each sample by itself.

    Attributes:
      examples, of_other_parameters: see `Oracle`.
      deviation: of the first kernel that was asked for, see `TraceError`; None before, and of one sample.
    """

    def __init__(self, ntk: NtkConfig, make: Callable[[NtkConfig], Oracle]) -> None:
        """Takes the kernel's configuration, and what makes an oracle of another."""
        axis, *others = ntk.trace_axes
        diagonal = ntk.diagonal_axes
        self._place = 2 + sum(1 if a in diagonal else 2 for a in range(1, axis) if a not in others)
        self._each = make(
            dataclasses.replace(ntk, trace_axes=tuple(others), diagonal_axes=(*diagonal, axis), trace_samples=None)
        )
        self.examples, self.of_other_parameters = self._each.examples, self._each.of_other_parameters
        self.deviation: float | None = None

    @property
    def proof(self) -> Proof | None:
        """See `Oracle`."""
        return self._each.proof

    @property
    def shares(self) -> Shares | None:
        """See `Oracle`."""
        return self._each.shares

    def kernel(self, trainable: Mapping[str, Any], x1: Batch, x2: Batch | None = None) -> np.ndarray:
        """See `Oracle`."""
        kernels = np.moveaxis(self._each.kernel(trainable, x1, x2), self._place, -1)
        kernel: np.ndarray = kernels.mean(-1)
        samples = kernels.shape[-1]
        if self.deviation is None and samples > 1:
            largest = float(np.max(np.abs(kernel))) or 1.0
            self.deviation = math.sqrt(float(np.mean(kernels.var(-1, ddof=1))) / samples) / largest
        return kernel

    def features(self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]) -> np.ndarray:
        """See `Oracle`."""
        return self._each.features(trainable, x, sketch, trace_axes)

    def with_features(
        self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Oracle`."""
        return self.kernel(trainable, x), self.features(trainable, x, sketch, trace_axes)


def trace_error(plan: Plan, examples: int, deviation: float | None) -> TraceError | None:
    """What is known of it, and the difference from the exact kernel if it can be afforded; None if the trace is exact.

    Args:
      plan: what is exported.
      examples: of which the kernel is computed.
      deviation: that `SampledOracle` found.
    """
    samples = plan.ntk.trace_samples
    if samples is None:
        return None
    difference = None
    exact_flops = plan.flops_of_example * plan.traced_outputs / samples
    if examples * exact_flops <= SHARE * plan.export.verify.seconds * _RATE:
        x = plan.model.behind_front(plan.model.examples(examples))

        def kernel(model: FunctionalModel) -> np.ndarray:
            fn = layerwise_kernel_fn(
                model.apply_fn,
                trace_axes=plan.ntk.trace_axes,
                diagonal_axes=plan.ntk.diagonal_axes,
                coupled=plan.coupled,
                platforms=[jax.default_backend()],
            )
            return np.asarray(jax.jit(fn)(model.trainable, model.frozen, x), np.float64)

        estimated, exact = kernel(plan.differentiated), kernel(plan.model)
        difference = float(np.max(np.abs(estimated - exact)) / np.max(np.abs(exact)))
    return TraceError(samples, plan.traced_outputs, plan.ntk.trace_seed, examples, deviation, difference)
