"""What a SavedModel should give, in float64, and by how much that jumps where an activation has a kink."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exporter.artefact.oracle import Batch, Oracle
from exporter.compat.jax_names import enable_x64
from exporter.functionalize import FunctionalModel
from serving.shared import reference

# From trainable variables and examples to features.
Project = Callable[[Mapping[str, np.ndarray], Batch], np.ndarray]

# Changes of parameters and inputs, in roundings of each number, that may put an activation on the other side of a kink.
_ROUNDINGS = (1, 2, 4)


def sides_of(x: tuple[np.ndarray, ...]) -> dict[str, tuple[np.ndarray, ...]]:
    """The examples that signatures are called with: of pairs all of them with a few."""
    return {"x": x, "x1": x, "x2": tuple(a[: reference.few(len(x[0]))] for a in x)}


def perturbed(trainable: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Other parameters than the model's own, for `ntk_with_params`."""
    rng = np.random.default_rng(1)
    return {k: (v * (1 + 0.1 * rng.standard_normal(v.shape))).astype(v.dtype) for k, v in trainable.items()}


def kernels(
    oracle: Oracle,
    trainable: Mapping[str, np.ndarray],
    sides: Mapping[str, Batch],
    params: Mapping[str, np.ndarray],
    signatures: Sequence[str],
    coupled: bool,
    project: Project | None = None,
) -> dict[str, np.ndarray]:
    """float64 kernels for each signature that is of one, and features."""
    x, few = sides["x"], len(sides["x2"][0])
    expected: dict[str, np.ndarray] = {}
    if not {"ntk", "ntk_symmetric", "ntk_diagonal"}.isdisjoint(signatures):
        symmetric = oracle.kernel(trainable, x)
        expected |= {"ntk_symmetric": symmetric, "ntk_diagonal": np.einsum("nn...->n...", symmetric)}
    if "ntk" in signatures:
        expected["ntk"] = oracle.kernel(trainable, x, sides["x2"]) if coupled else symmetric[:, :few]
    if "ntk_with_params" in signatures:
        expected["ntk_with_params"] = oracle.kernel(params, x, sides["x2"])
    if project is not None:
        expected["ntk_features"] = project(trainable, x)
    return expected


def jumps_of(
    model: FunctionalModel,
    oracle: Oracle,
    sides: Mapping[str, Batch],
    params: Mapping[str, np.ndarray],
    coupled: bool,
    expected: Mapping[str, np.ndarray],
    rounding: float,
    project: Project | None,
) -> dict[str, np.ndarray]:
    """By how much each entry of the signatures' float64 kernels jumps within a few roundings of parameters and inputs.

    The largest |K(θ + δ) + K(θ - δ) - 2 K(θ)| of some random δ: what is smooth cancels however ill-conditioned it is,
    and what is left is the change of the derivative of an activation, where one of the sides is beyond its kink.
    """
    rng = np.random.default_rng(0)
    arrays = (model.trainable, params, sides["x"])
    of_kernel = {name: value for name, value in expected.items() if name != "forward"}

    def at(signs: Any, size: float) -> dict[str, np.ndarray]:
        def moved(value: np.ndarray, sign: np.ndarray) -> np.ndarray:
            floating = jax.numpy.issubdtype(value.dtype, np.floating)
            return value.astype(np.float64) * (1 + size * sign) if floating else value

        trainable, others, x = jax.tree.map(moved, arrays, signs)
        there = {"x": x, "x2": tuple(a[: len(b)] for a, b in zip(x, sides["x2"], strict=True))}
        with enable_x64():
            return kernels(oracle, trainable, there, others, list(of_kernel), coupled, project)

    largest = {name: np.zeros_like(kernel) for name, kernel in of_kernel.items()}
    for roundings in _ROUNDINGS:
        signs = jax.tree.map(lambda value: rng.uniform(-1, 1, value.shape), arrays)
        size = roundings * rounding
        ahead, behind = at(signs, size), at(signs, -size)
        for name, kernel in of_kernel.items():
            largest[name] = np.maximum(largest[name], np.abs(ahead[name] + behind[name] - 2 * kernel))
    if (features := largest.get("ntk_features")) is not None:
        # One unit beyond its kink changes all of an example's features, by amounts that are random in each of them.
        largest["ntk_features"] = np.broadcast_to(features.max(-1, keepdims=True), features.shape)
    return largest
