"""`ntk_features` as JAX functions for all platforms: of a model already traced, or of one traced when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise.features import ApplyFn, ExampleFeatures
from exporter.ntk.layerwise.lowering import of_all, of_platforms
from exporter.ntk.layerwise.projection import Projection

Array = Any


class ProjectedFeatures:
    """Features (n, ..., D) of examples, whose products approximate the kernel; lowered for several platforms."""

    def __init__(
        self,
        traced: ExampleFeatures,
        sketch: Sketch,
        *,
        trace_axes: Sequence[int],
        memory: int,
        platforms: Sequence[str] | None,
    ) -> None:
        """Takes a traced model.

        Args:
          traced: it.
          sketch: the projection.
          trace_axes: axes of the output, counted with the batch axis, that the kernel is averaged over.
          memory: bytes that derivatives may take; of more outputs they are made for some at a time.
          platforms: those that are lowered for; None for any.
        """
        self._memory = memory
        self._projection = Projection(
            traced, sketch, trace_axes=[a - 1 for a in trace_axes], hows=of_platforms(platforms)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example's features."""
        return self._projection.shape

    @property
    def dtype(self) -> Any:
        """Of features."""
        return self._projection.dtype

    def bytes_at_work(self, examples: int) -> int:
        """That so many examples take at least, of one output at a time, counted from shapes."""
        return self._projection.bytes_at_work(examples, 1)

    def of_any_number(self, most: int) -> bool:
        """Whether a program for any number of examples, up to so many, is as fast as one for a known number."""
        return self._projection.of_any_number(most, self._memory)

    def __call__(self, trainable: Any, frozen: Any, x: tuple[Array, ...], most: int | None = None) -> Array:
        """The features of examples x, of which there are at most so many if their number is symbolic."""
        return self._projection.compute(trainable, frozen, x, self._memory, most)


def projected_features_fn(
    apply_fn: ApplyFn,
    sketch: Sketch,
    *,
    trace_axes: Sequence[int],
    memory: int = 1 << 30,
    platforms: Sequence[str] | None = None,
) -> Callable[[Any, Any, tuple[Array, ...]], Array]:
    """features(trainable, frozen, x): (n, ..., D) with the axes of the output that are not traced, and D.

    Products of features of two examples approximate their entries of the kernel: see `docs/features.md`.

    Args:
      apply_fn: `apply_fn(trainable, frozen, inputs)` of shape (n, *S), each example of which depends on its own inputs.
      sketch: the projection; it is on the paths and shapes of `trainable`.
      trace_axes: axes of the output, counted with the batch axis and not negative, over which the kernel is averaged.
      memory: bytes that derivatives may take; of more outputs they are made for some at a time.
      platforms: those that are lowered for; None for any.
    """

    def features(trainable: Any, frozen: Any, x: tuple[Array, ...]) -> Array:
        traced = ExampleFeatures(
            apply_fn,
            trainable,
            frozen,
            x,
            counts=(1, 1),
            trace_axes=trace_axes,
            diagonal_axes=(),
            how=of_all(platforms),
        )
        projected = ProjectedFeatures(traced, sketch, trace_axes=trace_axes, memory=memory, platforms=platforms)
        return projected(trainable, frozen, x)

    return features
