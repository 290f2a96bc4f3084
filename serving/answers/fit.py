"""From an export and a data set to everything that answers are computed from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from serving.answers import algebra, quality
from serving.answers.errors import FitError
from serving.answers.exported import Exported
from serving.answers.module import ByFeatures, Exact, Fitted, Similarities
from serving.answers.reference import Reference
from serving.answers.targets import Task

_RECALL = 0.99  # of the 10 nearest, that half precision must leave
_QUERIES = 200
_PART = 4096  # rows of the table at work


@dataclasses.dataclass(frozen=True)
class Fit:
    """What was fitted.

    Attributes:
      fitted: what answers need of the examples that are kept.
      similarities: their kernel, as TensorFlow functions.
      selection: the ridge, and what was tried.
      left_out: what is said of each example by all others, of residuals.
      left_out_quality: what that is worth.
      kept: numbers of the examples that are kept.
      table: the dtype that they are kept in.
      algebra: float64 matrices that verification compares with.
    """

    fitted: Fitted
    similarities: Similarities
    selection: algebra.Selection
    left_out: algebra.LeftOut
    left_out_quality: Mapping[str, Any]
    kept: np.ndarray
    table: str
    algebra: Mapping[str, np.ndarray]


def fit(
    exported: Exported,
    reference: Reference,
    task: Task,
    output: np.ndarray,
    y: np.ndarray,
    ids: np.ndarray,
    *,
    ridge: float | None,
    neighbors: int,
    keep: int | None,
    memory: int,
) -> Fit:
    """Fits answers.

    Args:
      exported: the export.
      reference: the examples.
      task: what is predicted.
      output: (n, O) of the network.
      y: targets as `task` has them.
      ids: (n,) of the examples.
      ridge: None for the one of the least leave-one-out loss.
      neighbors: that are answered.
      keep: examples that `nearest` and `support` know; None for as many as fit the memory.
      memory: bytes of what is kept of them.

    Raises:
      FitError: it cannot be done.
    """
    residuals, logits = task.residuals(output, y), task.logits(output)
    coordinates = reference.coordinates
    if not coordinates.trace > 0:
        raise FitError(
            f"{exported.path}: expected a kernel above zero, received zero for all examples: the output depends on no "
            "trainable variable there."
        )
    if task.classes:
        selection = algebra.select(coordinates, task, logits, y, ridge)
        left_out = algebra.left_out(coordinates, residuals, selection.ridge)
        others = algebra.left_out(coordinates, logits, selection.ridge)
        said = quality.of_classes(task.probabilities(others.values, selection.scale * others.latent), y)
    else:
        network = algebra.network_fit(coordinates, y, output)
        selection = algebra.select(coordinates, task, residuals, y, ridge, network)
        left_out = algebra.left_out(coordinates, residuals, selection.ridge)
        variance = selection.scale * (left_out.latent + selection.ridge)
        errors = (residuals - left_out.values) / network[:, None]
        said = quality.of_numbers(np.zeros_like(errors), errors, variance)
        said |= {"rmse": float(np.sqrt(selection.loss)), "rmse_with_network": said["rmse"]}
    if reference.method == "exact":
        if keep is not None:
            raise FitError("--keep is of --method=features: exact answers need all reference examples.")
        kept, dtype = np.arange(reference.coordinates.count), "float32"
        similarities, matrices = _exact(exported, reference, selection.ridge, left_out.weights)
    else:
        kept, dtype = _kept(reference, left_out.leverages, keep, memory)
        similarities, matrices = _by_features(exported, reference, selection.ridge, residuals, kept, dtype)
    if neighbors > len(kept):
        raise FitError(f"Expected --neighbors of at most the {len(kept):,} reference examples, received {neighbors}.")
    fitted = Fitted(
        task,
        selection.ridge,
        selection.scale,
        ids[kept],
        np.sqrt(reference.diagonal[kept]),
        left_out.weights[kept],
        neighbors,
    )
    return Fit(fitted, similarities, selection, left_out, said, kept, dtype, matrices)


def _exact(
    exported: Exported, reference: Reference, ridge: float, weights: np.ndarray
) -> tuple[Similarities, dict[str, np.ndarray]]:
    inverse_root = reference.vectors / np.sqrt(reference.coordinates.values + ridge)
    names = list(exported.specs)
    if exported.keeps:
        own = tf.nest.flatten(reference.own)

        def kernel(inputs: Any, own: Any) -> tf.Tensor:
            return exported.model.ntk_of_references([inputs[name] for name in names], own)
    else:
        own = [reference.own[name] for name in names]

        def kernel(inputs: Any, own: Any) -> tf.Tensor:
            return exported.pairs(inputs, dict(zip(names, own, strict=True)))

    similarities = Exact(exported.call, kernel, own, weights, inverse_root)
    return similarities, {"weights": weights, "inverse_root": inverse_root}


def _by_features(
    exported: Exported, reference: Reference, ridge: float, residuals: np.ndarray, kept: np.ndarray, dtype: str
) -> tuple[Similarities, dict[str, np.ndarray]]:
    coordinates, vectors = reference.coordinates, reference.vectors
    mean = vectors @ (coordinates.products(residuals) / (coordinates.values + ridge)[:, None])
    known = vectors * np.sqrt(coordinates.values / (coordinates.values + ridge))
    table = _rows(reference.features, kept, dtype)
    return ByFeatures(exported.call, table, mean, known), {"mean": mean, "known": known, "table": table}


def _kept(reference: Reference, leverages: np.ndarray, keep: int | None, memory: int) -> tuple[np.ndarray, str]:
    """Which examples are kept, those of the largest leverages, and in which dtype."""
    n, dimensions = reference.features.shape
    if keep is not None and not 1 <= keep <= n:
        raise FitError(f"Expected --keep from 1 to the {n:,} reference examples, received {keep:,}.")
    room = max(1, memory // (4 * dimensions))
    count = min(n, keep or n)
    if count <= room:
        return _largest(leverages, count), "float32"
    kept = _largest(leverages, min(count, 2 * room))
    if _recall(reference.features, kept) >= _RECALL:
        return kept, "bfloat16"
    return _largest(leverages, room), "float32"


def _largest(leverages: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-leverages, kind="stable")[:count])


def _recall(array: Any, kept: np.ndarray) -> float:
    """Which part of the 10 nearest of some examples are those that half precision finds."""
    queries = _unit(_rows(array, kept[:: math.ceil(len(kept) / _QUERIES)], "float32"))
    many = min(10, len(kept))
    scores: dict[str, list[np.ndarray]] = {"float32": [], "bfloat16": []}
    for start in range(0, len(kept), _PART):
        rows = _rows(array, kept[start : start + _PART], "float32")
        norms = np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float32).tiny)
        for dtype, parts in scores.items():
            parts.append(queries @ rows.astype(np.dtype(dtype)).astype(np.float32).T / norms)
    nearest = [np.argsort(-np.concatenate(parts, 1), 1)[:, :many] for parts in scores.values()]
    return float(np.mean([len(set(a) & set(b)) / many for a, b in zip(*nearest, strict=True)]))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _rows(array: Any, rows: np.ndarray, dtype: str) -> np.ndarray:
    """Those rows of a store's array, read by its chunks."""
    result = np.empty((len(rows), array.shape[1]), np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))
    step = array.chunks[0]
    for start in range(0, array.shape[0], step):
        inside = (rows >= start) & (rows < start + step)
        if inside.any():
            result[inside] = np.asarray(array[start : start + step])[rows[inside] - start]
    return result
