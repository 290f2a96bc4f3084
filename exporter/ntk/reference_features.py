"""The oracle of features: the projection of explicit Jacobians in float64, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exporter.ntk.count_sketch import Sketch
from exporter.ntk.reference import ApplyFn, ExplicitJacobian, Told, Vjps, jitted_vjps


def reference_features(
    apply_fn: ApplyFn,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    x: tuple[Any, ...],
    sketch: Sketch,
    *,
    trace_axes: Sequence[int] = (-1,),
    memory: int = 1 << 30,
    vjps: Vjps | None = None,
) -> np.ndarray:
    """The features that `docs/features.md` defines, of Jacobians written out row by row in float64.

    Args:
      apply_fn: `apply_fn(trainable, frozen, inputs)` of shape (n, *S) for inputs batched on axis 0.
      trainable: the variables of the Jacobian, by path.
      frozen: the other variables, by path.
      x: the model's inputs, each (n, ...).
      sketch: the projection.
      trace_axes: axes of the output, counted with the batch axis, over which the kernel is averaged.
      memory: bytes that the Jacobians held at one time may take, if one output's fits.
      vjps: `jitted_vjps` of these, if it is called for several values of the variables and should be compiled once.

    Returns:
      float64 (n, ..., D) with the axes of the output that are not traced.
    """
    vjps = vjps or jitted_vjps(apply_fn, trainable, frozen, x)
    jacobian = ExplicitJacobian(apply_fn, vjps, trainable, frozen, x, coupled=False)
    shape = jacobian.output_shape
    traced_axes = [a for a in range(len(shape)) if a + 1 in {t % (len(shape) + 1) for t in trace_axes}]
    outputs = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), traced_axes, range(len(traced_axes)))
    kept_shape = outputs.shape[len(traced_axes) :]
    outputs = outputs.reshape(math.prod(shape[a] for a in traced_axes), -1)  # (traced, kept)
    total = np.zeros((jacobian.count, outputs.shape[1], sketch.dimensions))
    at_once = max(1, memory // (8 * max(1, sum(np.size(v) for v in trainable.values()))))  # outputs
    together, size = max(1, at_once // outputs.shape[1]), min(at_once, outputs.shape[1])
    for start in range(0, len(outputs), together):
        for first in range(0, outputs.shape[1], size):
            some = slice(first, first + size)
            parts = [row[some] for row in outputs[start : start + together]]
            project = projecting(total[:, some], trainable, sketch, len(outputs))
            for n in range(jacobian.count):
                examples = slice(n, n + 1)
                project(examples, start, jacobian(parts, examples, len(parts)))
    return total.reshape(jacobian.count, *kept_shape, sketch.dimensions)


def projecting(total: np.ndarray, trainable: Mapping[str, Any], sketch: Sketch, traced: int) -> Told:
    """Adds Jacobians, whose parts are some of so many `traced` outputs, to features `total` (n, K, D)."""

    def add(examples: slice, first: int, jacobian: Sequence[np.ndarray]) -> None:
        for (path, value), gradients in zip(sorted(trainable.items()), jacobian, strict=True):
            for k in range(gradients.shape[1]):
                for rows, of_example in zip(total[examples], gradients[:, k], strict=True):
                    sketch.add(rows, path, np.shape(value), first + k, of_example, traced)

    return add
