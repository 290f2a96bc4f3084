"""What a SavedModel should give, in float64, and by how much that jumps where an activation has a kink."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exporter.artefact.oracle import Batch, Oracle
from exporter.compat.jax_names import enable_x64
from exporter.ntk.count_sketch import Sketch
from serving.shared import reference

# Changes of parameters and inputs, in roundings of each number, that may put an activation on the other side of a kink:
# the largest first, as it explains most.
_ROUNDINGS = (4, 2, 1)


def sides_of(x: tuple[np.ndarray, ...]) -> dict[str, tuple[np.ndarray, ...]]:
    """The examples that signatures are called with: of pairs all of them with a few."""
    return {"x": x, "x1": x, "x2": tuple(a[: reference.few(len(x[0]))] for a in x)}


def perturbed(trainable: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Other parameters than the model's own, for `ntk_with_params`."""
    rng = np.random.default_rng(1)
    return {k: (v * (1 + 0.1 * rng.standard_normal(v.shape))).astype(v.dtype) for k, v in trainable.items()}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What signatures should give, for values of the variables and of the examples.

    Attributes:
      oracle: of kernels and features.
      coupled: whether examples influence each other.
      sketch: the projection that `ntk_features` gives.
      trace_axes: of the kernel.
    """

    oracle: Oracle
    coupled: bool
    sketch: Sketch | None
    trace_axes: Sequence[int]

    def of(
        self,
        signatures: Collection[str],
        trainable: Mapping[str, np.ndarray],
        sides: Mapping[str, Batch],
        params: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """float64 kernels of each of these signatures that is of one, and features; `params` may be `trainable`."""
        x, few = sides["x"], len(sides["x2"][0])
        of_features = (x, self.sketch, self.trace_axes) if self.sketch and "ntk_features" in signatures else None
        expected: dict[str, np.ndarray] = {}
        of_pairs = {"ntk": trainable, "ntk_with_params": params}
        own = {name for name, values in of_pairs.items() if values is trainable}
        if not {"ntk_symmetric", "ntk_diagonal", *own}.isdisjoint(signatures):
            if of_features:
                symmetric, expected["ntk_features"] = self.oracle.with_features(trainable, *of_features)
            else:
                symmetric = self.oracle.kernel(trainable, x)
            expected |= {"ntk_symmetric": symmetric, "ntk_diagonal": np.einsum("nn...->n...", symmetric)}
        elif of_features:
            expected["ntk_features"] = self.oracle.features(trainable, *of_features)
        for name, values in of_pairs.items():
            if name in signatures:
                alone = self.coupled or name not in own
                expected[name] = self.oracle.kernel(values, x, sides["x2"]) if alone else symmetric[:, :few]
        return expected


def jumps(
    expected: Expected,
    right: Mapping[str, np.ndarray],
    trainable: Mapping[str, np.ndarray],
    sides: Mapping[str, Batch],
    params: Mapping[str, np.ndarray],
    rounding: float,
) -> Iterator[dict[str, np.ndarray]]:
    """By how much each entry of `right` jumps within a few roundings of parameters and inputs, change by change.

    The largest |K(θ + δ) + K(θ - δ) - 2 K(θ)| of some random δ: what is smooth cancels however ill-conditioned it is,
    and what is left is the change of the derivative of an activation, where one of the sides is beyond its kink.
    """
    rng = np.random.default_rng(0)
    own = params is trainable
    arrays = (trainable, None if own else params, sides["x"])

    def at(signs: Any, size: float) -> dict[str, np.ndarray]:
        def moved(value: np.ndarray, sign: np.ndarray) -> np.ndarray:
            floating = jax.numpy.issubdtype(value.dtype, np.floating)
            return value.astype(np.float64) * (1 + size * sign) if floating else value

        trainable, others, x = jax.tree.map(moved, arrays, signs)
        there = {"x": x, "x2": tuple(a[: len(b)] for a, b in zip(x, sides["x2"], strict=True))}
        with enable_x64():
            return expected.of(right, trainable, there, trainable if own else others)

    largest = {name: np.zeros_like(kernel) for name, kernel in right.items()}
    for roundings in _ROUNDINGS:
        signs = jax.tree.map(lambda value: rng.uniform(-1, 1, value.shape), arrays)
        size = roundings * rounding
        ahead, behind = at(signs, size), at(signs, -size)
        for name, kernel in right.items():
            jump = np.abs(ahead[name] + behind[name] - 2 * kernel)
            if name == "ntk_features":
                # One unit beyond its kink changes all of an example's features, by random amounts in each of them.
                jump = np.broadcast_to(jump.max(-1, keepdims=True), jump.shape)
            largest[name] = np.maximum(largest[name], jump)
        yield largest
