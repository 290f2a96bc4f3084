"""`ntk_features` as JAX functions for all platforms: of a model already traced, or of one traced when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax import lax

from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise import lowering
from exporter.ntk.layerwise.features import ApplyFn, ExampleFeatures
from exporter.ntk.layerwise.projection import Projection

Array = Any


class ProjectedFeatures:
    """Features (n, ..., D) of examples, whose products approximate the kernel; lowered for several platforms."""

    def __init__(
        self,
        lowered: tuple[ExampleFeatures, ExampleFeatures],
        sketch: Sketch,
        *,
        trace_axes: Sequence[int],
        memory: int,
    ) -> None:
        """Takes a model as it is traced for CPUs and for other platforms.

        Args:
          lowered: these.
          sketch: the projection.
          trace_axes: axes of the output, counted with the batch axis, that the kernel is averaged over.
          memory: bytes that derivatives may take; of more outputs they are made for some at a time.
        """
        self._memory = memory
        self._on_cpu, self._default = (
            Projection(features, sketch, trace_axes=[a - 1 for a in trace_axes], cache=how.cache)
            for features, how in zip(lowered, (lowering.CPU, lowering.DEFAULT), strict=True)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example's features."""
        return self._default.shape

    def bytes_at_work(self, examples: int) -> int:
        """That so many examples take at least, of one output at a time, counted from shapes."""
        return self._default.bytes_at_work(examples, 1)

    def __call__(self, trainable: Any, frozen: Any, x: tuple[Array, ...]) -> Array:
        """The features of examples x."""
        return lax.platform_dependent(
            cpu=lambda: self._on_cpu.compute(trainable, frozen, x, self._memory),
            default=lambda: self._default.compute(trainable, frozen, x, self._memory),
        )


def projected_features_fn(
    apply_fn: ApplyFn, sketch: Sketch, *, trace_axes: Sequence[int], memory: int = 1 << 30
) -> Callable[[Any, Any, tuple[Array, ...]], Array]:
    """features(trainable, frozen, x): (n, ..., D) with the axes of the output that are not traced, and D.

    Products of features of two examples approximate their entries of the kernel: see `docs/features.md`.

    Args:
      apply_fn: `apply_fn(trainable, frozen, inputs)` of shape (n, *S), each example of which depends on its own inputs.
      sketch: the projection; it is on the paths and shapes of `trainable`.
      trace_axes: axes of the output, counted with the batch axis and not negative, over which the kernel is averaged.
      memory: bytes that derivatives may take; of more outputs they are made for some at a time.
    """

    def features(trainable: Any, frozen: Any, x: tuple[Array, ...]) -> Array:
        def lowered_by(how: lowering.Lowering) -> ExampleFeatures:
            return ExampleFeatures(
                apply_fn, trainable, frozen, x, counts=(1, 1), trace_axes=trace_axes, diagonal_axes=(), how=how
            )

        lowered = lowered_by(lowering.CPU), lowered_by(lowering.DEFAULT)
        return ProjectedFeatures(lowered, sketch, trace_axes=trace_axes, memory=memory)(trainable, frozen, x)

    return features
