"""How far products of features are from the exact kernel, on the examples of the verification."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from exporter.config import NtkConfig
from exporter.ntk.count_sketch import Sketch


@dataclasses.dataclass(frozen=True)
class FeaturesError:
    """What was measured, on pairs of different outputs of examples, relative to √(K11 K22).

    Attributes:
      dimensions: D.
      seed: of the projection.
      examples: of which features were made.
      error: root mean square difference of F(x1) F(x2)ᵀ from K12; None if that is not known for more than one row.
      bound: what the root mean square of √((K11 K22 + K12²) / D), the bound of an entry's standard deviation, is there.
    """

    dimensions: int
    seed: int
    examples: int
    error: float | None
    bound: float | None

    @property
    def summary(self) -> str:
        """For people, in a line."""
        measured = "" if self.error is None else f", {self.error:.1%} from the exact kernel, expected {self.bound:.1%}"
        return f"{self.dimensions:,} features{measured}"


def features_error(sketch: Sketch, ntk: NtkConfig, features: np.ndarray, kernel: np.ndarray | None) -> FeaturesError:
    """Measures it.

    Args:
      sketch: the projection.
      ntk: the kernel's configuration.
      features: of some examples, (n, ..., D).
      kernel: of these with themselves in float64; None if it is not known.
    """
    error, bound = None, None
    if kernel is not None:
        difference, exact, scale = _on_pairs(features, kernel, _diagonal(ntk, features))
        there = ~np.eye(exact.shape[-1], dtype=bool) & (scale > 0)
        if np.any(there):
            error = math.sqrt(np.mean((difference[there] / scale[there]) ** 2))
            bound = math.sqrt(np.mean(1 + (exact[there] / scale[there]) ** 2) / sketch.dimensions)
    return FeaturesError(sketch.dimensions, sketch.seed, len(features), error, bound)


def _diagonal(ntk: NtkConfig, features: np.ndarray) -> list[bool]:
    """For each axis of the output that is not traced whether it is diagonal."""
    rank = features.ndim - 1 + len(ntk.trace_axes)
    trace, diagonal = ({axis % rank for axis in axes} for axes in (ntk.trace_axes, ntk.diagonal_axes))
    return [axis in diagonal for axis in range(1, rank) if axis not in trace]


def _on_pairs(features: np.ndarray, kernel: np.ndarray, diagonal: Sequence[bool]) -> tuple[Any, Any, Any]:
    """Differences, kernel and √(K11 K22): (diagonal outputs, rows, rows), a row for each example and kept output."""
    stacked = [1 + k for k, alone in enumerate(diagonal) if alone]
    kept = [1 + k for k, alone in enumerate(diagonal) if not alone]
    rows = np.transpose(features.astype(np.float64), [*stacked, 0, *kept, features.ndim - 1])
    count = math.prod(features.shape[a] for a in stacked)
    rows = rows.reshape(count, -1, features.shape[-1])
    left, right, both, place = [0], [1], [], 2
    for alone in diagonal:
        if alone:
            both.append(place)
        else:
            left.append(place)
            right.append(place + 1)
        place += 1 if alone else 2
    exact = np.transpose(kernel, [*both, *left, *right]).reshape(count, rows.shape[1], rows.shape[1])
    norms = np.sqrt(np.maximum(np.einsum("drr->dr", exact), 0))
    return rows @ np.swapaxes(rows, 1, 2) - exact, exact, norms[:, :, None] * norms[:, None, :]
