"""Is the written SavedModel right? It is run where only TensorFlow is, and compared with a float64 Jacobian."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exporter.artefact.oracle import Batch, Oracle, Proof, forward_in_float64, oracle_of
from exporter.artefact.reloading import run_saved_model
from exporter.compat.jax_names import enable_x64
from exporter.config import NtkConfig, VerifyConfig
from exporter.errors import ExportError
from exporter.functionalize import FunctionalModel
from exporter.progress import Note
from serving.shared import reference

_SMALL_REQUEST = 2e10  # operations, about a second

# So many roundings of half precision, relative to its largest entry, a kernel that is computed in it may be off: 0.016
# of float16, 0.12 of bfloat16. Of models of up to ten layers it was off by 4 at most, kinks aside, and roundings add up
# as the root of their number, so this is of models that are 16 times as deep; of a wrong kernel it is around 1.
HALF_ROUNDINGS = 16

# Changes of parameters and inputs, in roundings of each number, that may put an activation on the other side of a kink.
_ROUNDINGS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was measured.

    Attributes:
      examples: number of examples that the kernels were computed on, fewer than asked for if the model is large.
      rtol: the largest error that was allowed: the configuration's, or what `half` makes likely if that is more.
      half: the half precision that the kernel is computed in, where the model has it; None if it is not.
      proof: how the float64 kernels themselves were proved, where they are not from explicit Jacobians of all outputs.
      errors: for each signature and method the largest difference from float64, relative to its largest entry; but for
        entries at kinks.
      at_kinks: the same of the entries at kinks, for signatures and methods that have any: entries where float64
        itself jumps by about as much if parameters and inputs change by a rounding, as the derivative of a ReLU does.
      asymmetry: largest |K - Kᵀ| of the symmetric kernel, relative to its largest entry.
      smallest_eigenvalue: of the symmetric kernel, relative to the largest one; None without that signature.
      seconds: to load, and of the first call of everything, in a fresh process; and of the whole verification.
      left_out: requests, "signature/examples", that would have taken too long.
      reference: for each signature what `serving.shared.reference` keeps of the float64 result; those with two sides
        were called with all examples and with the first half of them. Empty if the examples are too large to be kept.
      inputs: these examples of each input, as `serving.shared.reference` keeps them; None if it can make them again.
    """

    examples: int
    rtol: float
    half: str | None
    proof: Proof | None
    errors: Mapping[str, float]
    at_kinks: Mapping[str, float]
    asymmetry: float | None
    smallest_eigenvalue: float | None
    seconds: Mapping[str, float]
    left_out: Sequence[str]
    reference: Mapping[str, Any]
    inputs: Sequence[Any] | None

    @property
    def worst(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())

    @property
    def summary(self) -> str:
        """For people, in a line: how near to float64, and what was left out."""
        kinks = max(self.at_kinks.values(), default=0.0)
        text = f"within {self.worst:.1e}{f' ({kinks:.1e} at kinks)' if kinks else ''} of float64"
        if self.proof is not None:
            text += f", proved on {self.proof.outputs} outputs and {self.proof.combinations} combinations of all"
        return text + (f"; {len(self.left_out)} large requests left out" if self.left_out else "")


def verify(
    saved_model: Path,
    model: FunctionalModel,
    ntk: NtkConfig,
    config: VerifyConfig,
    *,
    signatures: Sequence[str],
    served: FunctionalModel,
    coupled: bool,
    requests: Mapping[str, Sequence[int]],
    reaching: Mapping[str, Sequence[int]] | None = None,
    flops: float = 0,
    forward: FunctionalModel | None = None,
    note: Note = lambda text: None,
) -> Verification:
    """Compares all that a SavedModel computes with float64.

    Args:
      saved_model: its directory.
      model: what it was made of.
      ntk: the kernel's configuration.
      config: how many examples, and how far from float64 they may be.
      signatures: names of the signatures to call.
      served: the model with the dtypes of the SavedModel's inputs and variables.
      coupled: whether examples influence each other; then no example may be repeated.
      requests: for each signature further numbers of examples to call it with, which are the same ones repeated.
      reaching: those that reach every program; of a large model only these are made.
      flops: operations for the derivatives of all outputs of an example, by which it is told what can be afforded.
      forward: the model whose output `forward` gives, if it is not `model`.
      note: told how far it is.

    Returns:
      What was measured.

    Raises:
      ExportError: it cannot be loaded or called, or an entry that is not at a kink is further off than `config.rtol`;
        says where.
    """
    start = time.monotonic()
    half = model.half if ntk.precision == "model" else None
    rtol = config.rtol if half is None else max(config.rtol, HALF_ROUNDINGS * _rounding(half))
    own = model.examples(config.examples)
    parameter_sets = 1 + ("ntk_with_params" in signatures)
    oracle = oracle_of(
        model,
        ntk,
        model.behind_front(own),
        coupled=coupled,
        flops=flops,
        seconds=config.seconds,
        parameter_sets=parameter_sets,
        note=note,
    )
    n = oracle.examples
    own = tuple(a[:n] for a in own)
    x = model.behind_front(own)
    sides = _sides(x)
    params = _perturbed(model.trainable)
    expected = _kernels(oracle, model.trainable, sides, params, signatures, coupled)
    if "forward" in signatures:
        expected["forward"] = forward_in_float64(forward or model, x)
    note("the SavedModel, in a process of its own")
    asked, left_out = ({}, []) if coupled else _affordable(requests, reaching or {}, _SMALL_REQUEST / max(flops, 1.0))
    outputs, seconds = run_saved_model(saved_model, served, _sides(own), params, signatures, asked)
    jumps: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    at_kinks: dict[str, float] = {}
    for key, value in outputs.items():
        kind, name, *count = key.split("/")
        repeats = [(n, asked[name][n]) for n in map(int, count)]
        right = _repeated(name, expected[name], *repeats[0]) if repeats else expected[name]
        error = _error(value, right)
        if rtol < error < math.inf and name != "forward":
            rounding = _rounding(half or np.float32)
            jumps = jumps or _jumps(model, oracle, sides, params, coupled, expected, rounding)
            jump = _repeated(name, jumps[name], *repeats[0]) if repeats else jumps[name]
            value, difference = _without_kinks(value, right, jump, rtol)
            error = _error(value, right)
            at_kinks[f"{kind}/{name}"] = max(difference, at_kinks.get(f"{kind}/{name}", 0.0))
        if not error <= rtol:
            raise ExportError(_failure(key, value, right, error, rtol, half))
        errors[f"{kind}/{name}"] = max(error, errors.get(f"{kind}/{name}", 0.0))
    asymmetry, smallest = None, None
    if "ntk_symmetric" in signatures:
        asymmetry, smallest = _spectrum(outputs["signature/ntk_symmetric"], ntk, model)
        allowed = rtol + at_kinks.get("signature/ntk_symmetric", 0.0)
        if asymmetry > allowed:
            raise ExportError(
                f"Verification failed: expected ntk_symmetric to equal its transpose to {allowed:g} of its largest "
                f"entry, received a difference of {asymmetry:.3g}. Compare with another ntk.implementation."
            )
        if smallest < -allowed:
            raise ExportError(
                f"Verification failed: expected ntk_symmetric to be positive semidefinite up to rounding "
                f"({allowed:g}), received an eigenvalue of {smallest:.3g} relative to the largest. Use "
                "ntk.precision: float64."
            )
    recorded = {name: reference.record(expected[name]) for name in signatures if name != "ntk_with_params"}
    inputs = None if model.examples.reproducible else reference.record_examples(own)
    if inputs is None and not model.examples.reproducible:
        recorded = {}  # nobody could ask for them again
    seconds = {**seconds, "all": time.monotonic() - start}
    return Verification(
        examples=n,
        rtol=rtol,
        half=None if half is None else half.name,
        proof=oracle.proof,
        errors=errors,
        at_kinks=at_kinks,
        asymmetry=asymmetry,
        smallest_eigenvalue=smallest,
        seconds=seconds,
        left_out=left_out,
        reference=recorded,
        inputs=inputs,
    )


def _sides(x: tuple[np.ndarray, ...]) -> dict[str, tuple[np.ndarray, ...]]:
    """The examples that signatures are called with: of pairs all of them with a few."""
    return {"x": x, "x1": x, "x2": tuple(a[: reference.few(len(x[0]))] for a in x)}


def _perturbed(trainable: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Other parameters than the model's own, for `ntk_with_params`."""
    rng = np.random.default_rng(1)
    return {k: (v * (1 + 0.1 * rng.standard_normal(v.shape))).astype(v.dtype) for k, v in trainable.items()}


def _kernels(
    oracle: Oracle,
    trainable: Mapping[str, np.ndarray],
    sides: Mapping[str, Batch],
    params: Mapping[str, np.ndarray],
    signatures: Sequence[str],
    coupled: bool,
) -> dict[str, np.ndarray]:
    """float64 kernels for each signature that is of one."""
    x, few = sides["x"], len(sides["x2"][0])
    expected: dict[str, np.ndarray] = {}
    if not {"ntk", "ntk_symmetric", "ntk_diagonal"}.isdisjoint(signatures):
        symmetric = oracle.kernel(trainable, x)
        expected |= {"ntk_symmetric": symmetric, "ntk_diagonal": np.einsum("nn...->n...", symmetric)}
    if "ntk" in signatures:
        expected["ntk"] = oracle.kernel(trainable, x, sides["x2"]) if coupled else symmetric[:, :few]
    if "ntk_with_params" in signatures:
        expected["ntk_with_params"] = oracle.kernel(params, x, sides["x2"])
    return expected


def _jumps(
    model: FunctionalModel,
    oracle: Oracle,
    sides: Mapping[str, Batch],
    params: Mapping[str, np.ndarray],
    coupled: bool,
    expected: Mapping[str, np.ndarray],
    rounding: float,
) -> dict[str, np.ndarray]:
    """By how much each entry of the signatures' float64 kernels jumps within a few roundings of parameters and inputs.

    The largest |K(θ + δ) + K(θ - δ) - 2 K(θ)| of some random δ: what is smooth cancels however ill-conditioned it is,
    and what is left is the change of the derivative of an activation, where one of the sides is beyond its kink.
    """
    rng = np.random.default_rng(0)
    arrays = (model.trainable, params, sides["x"])
    kernels = {name: value for name, value in expected.items() if name != "forward"}

    def at(signs: Any, size: float) -> dict[str, np.ndarray]:
        def moved(value: np.ndarray, sign: np.ndarray) -> np.ndarray:
            floating = jax.numpy.issubdtype(value.dtype, np.floating)
            return value.astype(np.float64) * (1 + size * sign) if floating else value

        trainable, others, x = jax.tree.map(moved, arrays, signs)
        there = {"x": x, "x2": tuple(a[: len(b)] for a, b in zip(x, sides["x2"], strict=True))}
        with enable_x64():
            return _kernels(oracle, trainable, there, others, list(kernels), coupled)

    largest = {name: np.zeros_like(kernel) for name, kernel in kernels.items()}
    for roundings in _ROUNDINGS:
        signs = jax.tree.map(lambda value: rng.uniform(-1, 1, value.shape), arrays)
        size = roundings * rounding
        ahead, behind = at(signs, size), at(signs, -size)
        for name, kernel in kernels.items():
            largest[name] = np.maximum(largest[name], np.abs(ahead[name] + behind[name] - 2 * kernel))
    return largest


def _rounding(dtype: Any) -> float:
    return float(jax.numpy.finfo(dtype).eps)


def _without_kinks(value: np.ndarray, right: np.ndarray, jump: np.ndarray, rtol: float) -> tuple[np.ndarray, float]:
    """`value` with the right entries where it is off by no more than they jump, and the largest difference there."""
    largest, difference = np.max(np.abs(right)) or 1.0, np.abs(value - right)
    kink = (jump > rtol * largest) & (difference <= jump + rtol * largest)
    return np.where(kink, right, value), float(np.max(difference[kink], initial=0.0) / largest)


def _affordable(
    requests: Mapping[str, Sequence[int]], reaching: Mapping[str, Sequence[int]], small: float
) -> tuple[dict[str, dict[int, int]], list[str]]:
    """Which requests to make, each with its number of examples of x2; and the names of those to leave out.

    All of at most `small` examples; and of larger ones those that reach programs, with one example of x2.
    """
    asked = {name: {n: reference.few(n) for n in counts if n <= small} for name, counts in requests.items()}
    for name, counts in reaching.items():
        asked[name] = {n: min(n, 1) for n in counts if n > small} | asked.get(name, {})
    left_out = [f"{name}/{n}" for name, counts in requests.items() for n in counts if n not in asked[name]]
    return asked, left_out


def _repeated(name: str, expected: np.ndarray, n: int, columns: int) -> np.ndarray:
    """What a signature should give for n examples, those of `expected` again and again, and the first of them as x2."""
    expected = expected[np.arange(n) % len(expected)]
    if name in ("ntk_diagonal", "forward"):
        return expected
    columns = n if name == "ntk_symmetric" else columns
    return expected[:, np.arange(columns) % expected.shape[1]]


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected entry; infinite for other shapes or values not finite."""
    if value.shape != expected.shape or not np.all(np.isfinite(value)):
        return float("inf")
    largest = np.max(np.abs(expected), initial=0.0)
    difference = np.max(np.abs(value - expected), initial=0.0)
    return float(difference / largest) if largest > 0 else float(difference)


def _failure(
    key: str, value: np.ndarray, expected: np.ndarray, error: float, rtol: float, half: np.dtype | None
) -> str:
    kind, name, *_ = key.split("/")
    if value.shape != expected.shape:
        return f"Verification failed: expected {kind} {name} of shape {expected.shape}, received {value.shape}."
    where = np.unravel_index(np.argmax(np.nan_to_num(np.abs(value - expected), nan=np.inf)), value.shape)
    index = ", ".join(map(str, where))
    if half is not None and not np.isfinite(value[where]):
        return (
            f"Verification failed: expected {kind} {name} to be finite, received {value[where]} at [{index}], where "
            f"float64 gives {expected[where]:.9g}: {half} holds no more than {float(jax.numpy.finfo(half).max):.3g}. "
            "Use ntk.precision: float32, which computes without half precision."
        )
    return (
        f"Verification failed: expected {kind} {name} within {rtol:g} of float64 (relative to its largest entry), "
        f"received a difference of {error:.3g}; furthest at [{index}]: {value[where]:.9g}, where float64 gives "
        f"{expected[where]:.9g}. Choose another ntk.implementation or ntk.precision, or a larger export.verify.rtol."
    )


def _spectrum(kernel: np.ndarray, ntk: NtkConfig, model: FunctionalModel) -> tuple[float, float]:
    """Asymmetry and smallest eigenvalue of the symmetric kernel, relative to its largest entry and eigenvalue."""
    rank = len(model.output.shape)
    trace, diagonal = ({a % rank for a in axes} for axes in (ntk.trace_axes, ntk.diagonal_axes))
    rows, columns, stacked, axis = [], [], [], 0
    for output_axis in range(rank):
        if output_axis in diagonal:
            stacked.append(axis)
        elif output_axis not in trace:
            rows.append(axis)
            columns.append(axis + 1)
        axis += (output_axis not in trace) + (output_axis not in trace | diagonal)
    size = int(np.prod([kernel.shape[a] for a in rows]))
    matrices = np.transpose(kernel, stacked + rows + columns).reshape(-1, size, size).astype(np.float64)
    largest = np.max(np.abs(matrices)) or 1.0
    asymmetry = np.max(np.abs(matrices - matrices.transpose(0, 2, 1))) / largest
    eigenvalues = np.linalg.eigvalsh(matrices)
    return float(asymmetry), float(np.min(eigenvalues) / (np.max(np.abs(eigenvalues)) or 1.0))
