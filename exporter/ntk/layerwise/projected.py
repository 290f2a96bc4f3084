"""`ntk_features` as a JAX function, which traces the model when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise.features import ApplyFn, ExampleFeatures
from exporter.ntk.layerwise.lowering import of_all, of_platforms
from exporter.ntk.layerwise.projection import Projection

Array = Any


def projected_features_fn(
    apply_fn: ApplyFn,
    sketch: Sketch,
    *,
    trace_axes: Sequence[int],
    memory: int = 1 << 30,
    platforms: Sequence[str] | None = None,
    with_kernel: bool = False,
) -> Callable[[Any, Any, tuple[Array, ...]], Any]:
    """features(trainable, frozen, x): (n, ..., D) with the axes of the output that are not traced, and D.

    Products of features of two examples approximate their entries of the kernel: see `docs/features.md`.

    Args:
      apply_fn: `apply_fn(trainable, frozen, inputs)` of shape (n, *S), each example of which depends on its own inputs.
      sketch: the projection; it is on the paths and shapes of `trainable`.
      trace_axes: axes of the output, counted with the batch axis and not negative, over which the kernel is averaged.
      memory: bytes that derivatives may take; of more outputs they are made for some at a time.
      platforms: those that are lowered for; None for any.
      with_kernel: whether the kernel (n, n) is returned as well, of a model all of whose outputs are traced. It is of
        the same derivatives, which are the most of the work of many outputs.
    """

    def features(trainable: Any, frozen: Any, x: tuple[Array, ...]) -> Any:
        n = x[0].shape[0] if with_kernel else 1
        traced = ExampleFeatures(
            apply_fn,
            trainable,
            frozen,
            x,
            counts=(n, n),
            trace_axes=trace_axes,
            diagonal_axes=(),
            how=of_all(platforms),
        )
        project = Projection(traced, sketch, trace_axes=trace_axes, memory=memory, hows=of_platforms(platforms))
        return project.with_kernel(trainable, frozen, x) if with_kernel else project(trainable, frozen, x)

    return features
