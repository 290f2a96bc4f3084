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

from exporter.artefact.expected import Expected, jumps, perturbed, sides_of
from exporter.artefact.features_error import FeaturesError, features_error
from exporter.artefact.oracle import Means, Oracle, Proof, Shares, affordable, forward_in_float64, oracle_of
from exporter.artefact.reloading import ReloadingProcess
from exporter.artefact.trace_error import SampledOracle
from exporter.config import NtkConfig, VerifyConfig
from exporter.errors import ExportError
from exporter.functionalize import FunctionalModel
from exporter.ntk.count_sketch import Sketch
from exporter.progress import Note, silent
from serving.shared import reference

_SMALL_REQUEST = 2e10  # operations, about a second
_LONG_REQUEST = 5e11  # about ten seconds: no method then does again what its signature does

# So many roundings of half precision, relative to its largest entry, a kernel that is computed in it may be off: 0.016
# of float16, 0.12 of bfloat16. Of models of up to ten layers it was off by 4 at most, kinks aside, and roundings add up
# as the root of their number, so this is of models that are 16 times as deep; of a wrong kernel it is around 1.
HALF_ROUNDINGS = 16


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was measured.

    Attributes:
      examples: number of examples that the kernels were computed on, fewer than asked for if the model is large.
      rtol: the largest error that was allowed: the configuration's, or what `half` makes likely if that is more.
      half: the half precision that the kernel is computed in, where the model has it; None if it is not.
      proof: how the float64 kernels themselves were proved, where they are not from explicit Jacobians of all outputs.
      trace_deviation: of an estimated trace, see `TraceError`.
      errors: for each signature and method the largest difference from float64, relative to its largest entry; but for
        entries at kinks.
      at_kinks: the same of the entries at kinks, for signatures and methods that have any: entries where float64
        itself jumps by about as much if parameters and inputs change by a rounding, as the derivative of a ReLU does.
      asymmetry: largest |K - Kᵀ| of the symmetric kernel, relative to its largest entry.
      smallest_eigenvalue: of the symmetric kernel, relative to the largest one; None without that signature.
      seconds: to load, and of the first call of everything, in a fresh process; and of the whole verification.
      left_out: requests, "signature/examples", that would have taken too long; and methods, "method/name", that were
        called without examples for that.
      reference: for each signature what `serving.shared.reference` keeps of the float64 result; those with two sides
        were called with all examples and with the first half of them. Empty if the examples are too large to be kept.
      shares: each variable's of the kernel's diagonal; None where no Jacobian was written out.
      features: how far products of `ntk_features` are from the exact kernel; None without that signature.
      inputs: these examples of each input, as `serving.shared.reference` keeps them; None if it can make them again.
    """

    examples: int
    rtol: float
    half: str | None
    proof: Proof | None
    trace_deviation: float | None
    errors: Mapping[str, float]
    at_kinks: Mapping[str, float]
    asymmetry: float | None
    smallest_eigenvalue: float | None
    seconds: Mapping[str, float]
    left_out: Sequence[str]
    reference: Mapping[str, Any]
    shares: Shares | None
    features: FeaturesError | None
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
        if self.features is not None:
            text += f"; {self.features.summary}"
        return text + (f"; {len(self.left_out)} large requests left out" if self.left_out else "")


def verify(
    process: ReloadingProcess,
    saved_model: Path,
    model: FunctionalModel,
    ntk: NtkConfig,
    config: VerifyConfig,
    *,
    signatures: Sequence[str],
    coupled: bool,
    requests: Mapping[str, Sequence[int]],
    reaching: Mapping[str, Sequence[int]] | None = None,
    flops: float = 0,
    narrowed: float = 1.0,
    frozen_flops: float = 0.0,
    forward: FunctionalModel | None = None,
    sketch: Sketch | None = None,
    note: Note = silent,
) -> Verification:
    """Compares all that a SavedModel computes with float64.

    Args:
      process: that calls it.
      saved_model: its directory.
      model: what it was made of.
      ntk: the kernel's configuration.
      config: how many examples, and how far from float64 they may be.
      signatures: names of the signatures to call.
      coupled: whether examples influence each other; then no example may be repeated.
      requests: for each signature further numbers of examples to call it with, which are the same ones repeated.
      reaching: those that reach every program; of a large model only these are made.
      flops: operations for the derivatives of all outputs of an example, by which it is told what can be afforded.
      narrowed: the part of these that the engine needs, whose last layer may be narrower.
      frozen_flops: operations for an example in front of that.
      forward: the model whose output `forward` gives, if it is not `model`.
      sketch: the projection that `ntk_features` gives.
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

    def oracle_for(ntk: NtkConfig) -> Oracle:
        means = Means(flops, config.seconds, _parameter_sets(signatures), narrowed)
        return oracle_of(model, ntk, model.behind_front(own), coupled=coupled, means=means, note=note)

    sampled = None if ntk.trace_samples is None else SampledOracle(ntk, oracle_for)
    oracle = sampled or oracle_for(ntk)
    n = oracle.examples
    own = tuple(a[:n] for a in own)
    x = model.behind_front(own)
    sides = sides_of(x)
    params = perturbed(model.trainable) if oracle.of_other_parameters else model.trainable
    float64 = Expected(oracle, coupled, sketch, ntk.trace_axes)
    of_example = flops * narrowed + frozen_flops
    asked, empty, left_out = _affordable(signatures, requests, reaching or {}, n, of_example, coupled)
    results = process.start(saved_model, model, sides_of(own), params, signatures, asked, empty=empty)
    proof = oracle.proof  # all this while the process runs
    expected = float64.of(signatures, model.trainable, sides, params)
    if "forward" in signatures:
        expected["forward"] = forward_in_float64(forward or model, x)
    told = "the SavedModel, in a process of its own"
    note(told)
    outputs, seconds = results(lambda done, total: note(f"{done} of {total} calls of {told}", done, total))
    for name in empty:
        _check_empty(name, outputs.pop(f"method/{name}"), expected)

    def compared(jump: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, float, float]]:
        """Each result, with the right entries where they jump by about as much as they are off; its error; theirs."""
        found = {}
        for key, value in outputs.items():
            _, name, right = _expected(key, expected, asked)
            error, at_kink = _error(value, right), 0.0
            if rtol < error < math.inf and name in jump:
                _, _, jumps_there = _expected(key, jump, asked)
                value, at_kink = _without_kinks(value, right, jumps_there, rtol)
                error = _error(value, right)
            found[key] = value, error, at_kink
        return found

    found = compared({})
    doubtful = {key.split("/")[1] for key, (_, error, _) in found.items() if rtol < error < math.inf} - {"forward"}
    if doubtful:
        some = {name: expected[name] for name in sorted(doubtful)}
        rounding = _rounding(half or np.float32)
        for jump in jumps(float64, some, model.trainable, sides, params, rounding):
            found = compared(jump)
            if all(error <= rtol for _, error, _ in found.values()):
                break
    errors: dict[str, float] = {}
    at_kinks: dict[str, float] = {}
    for key, (value, error, at_kink) in found.items():
        kind, name, right = _expected(key, expected, asked)
        if not error <= rtol:
            raise ExportError(_failure(key, value, right, error, rtol, half))
        errors[f"{kind}/{name}"] = max(error, errors.get(f"{kind}/{name}", 0.0))
        if at_kink:
            at_kinks[f"{kind}/{name}"] = max(at_kink, at_kinks.get(f"{kind}/{name}", 0.0))
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
        proof=proof,
        trace_deviation=None if sampled is None else sampled.deviation,
        errors=errors,
        at_kinks=at_kinks,
        asymmetry=asymmetry,
        smallest_eigenvalue=smallest,
        seconds=seconds,
        left_out=left_out,
        reference=recorded,
        shares=oracle.shares,
        features=None
        if sketch is None
        else features_error(sketch, ntk, outputs["signature/ntk_features"], expected.get("ntk_symmetric")),
        inputs=inputs,
    )


def planned(
    model: FunctionalModel,
    ntk: NtkConfig,
    config: VerifyConfig,
    *,
    signatures: Sequence[str],
    coupled: bool,
    requests: Mapping[str, Sequence[int]],
    reaching: Mapping[str, Sequence[int]],
    flops: float,
    narrowed: float,
    frozen_flops: float,
) -> str:
    """What `verify`, of which these are arguments, is going to do, for people."""
    means = Means(flops, config.seconds, _parameter_sets(signatures), narrowed)
    explicit, n = affordable(model, ntk, config.examples, coupled=coupled, means=means)
    by = "explicit float64 Jacobians" if explicit else "the kernel in float64, itself proved by explicit Jacobians,"
    of_example = flops * narrowed + frozen_flops
    _, _, left_out = _affordable(signatures, requests, reaching, n, of_example, coupled)
    text = f"every signature and method against {by} of {n} example{'s' * (n > 1)}"
    return text + (f"; without {len(left_out)} large requests" if left_out else "")


def _parameter_sets(signatures: Sequence[str]) -> int:
    """For how many values of the trainable variables kernels are computed."""
    return 1 + ("ntk_with_params" in signatures)


def _rounding(dtype: Any) -> float:
    return float(jax.numpy.finfo(dtype).eps)


def _without_kinks(value: np.ndarray, right: np.ndarray, jump: np.ndarray, rtol: float) -> tuple[np.ndarray, float]:
    """`value` with the right entries where it is off by no more than they jump, and the largest difference there."""
    largest, difference = np.max(np.abs(right)) or 1.0, np.abs(value - right)
    kink = (jump > rtol * largest) & (difference <= jump + rtol * largest)
    return np.where(kink, right, value), float(np.max(difference[kink], initial=0.0) / largest)


def _affordable(
    signatures: Sequence[str],
    requests: Mapping[str, Sequence[int]],
    reaching: Mapping[str, Sequence[int]],
    examples: int,
    flops: float,
    coupled: bool,
) -> tuple[dict[str, dict[int, int]], list[str], list[str]]:
    """Which requests to make, beside those of so many `examples`, each with its number of examples of x2.

    All that are small; and of larger ones those that reach programs, with one example of x2. None of coupled examples,
    nor any that is made anyway. Then which methods to call without examples, and the names of all that is left out.
    """
    if coupled:
        return {}, [], []
    small = _SMALL_REQUEST / max(flops, 1.0)
    asked = {name: {n: reference.few(n) for n in counts if n <= small} for name, counts in requests.items()}
    for name, counts in reaching.items():
        asked[name] = {n: min(n, 1) for n in counts if n > small} | asked.get(name, {})
    left_out = [f"{name}/{n}" for name, counts in requests.items() for n in counts if n not in asked[name]]
    anyway = examples, reference.few(examples)
    asked = {name: dict(item for item in of.items() if item != anyway) for name, of in asked.items()}
    empty = [name for name in signatures if examples * flops > _LONG_REQUEST and name != "forward"]
    return asked, empty, [*left_out, *(f"method/{name}" for name in empty)]


def _check_empty(name: str, value: np.ndarray, expected: Mapping[str, np.ndarray]) -> None:
    """Raises ExportError if a method's result without examples is not as empty as it should be."""
    right = _repeated(name, expected[name], 0, 0).shape
    if value.shape != right:
        raise ExportError(
            f"Verification failed: expected method {name} without examples of shape {right}, received {value.shape}."
        )


def _expected(
    key: str, expected: Mapping[str, np.ndarray], asked: Mapping[str, Mapping[int, int]]
) -> tuple[str, str, np.ndarray]:
    """The kind and name of a result, and what `expected` has for its number of examples."""
    kind, name, *count = key.split("/")
    of_name = expected[name]
    return kind, name, _repeated(name, of_name, int(count[0]), asked[name][int(count[0])]) if count else of_name


def _repeated(name: str, expected: np.ndarray, n: int, columns: int) -> np.ndarray:
    """What a signature should give for n examples, those of `expected` again and again, and the first of them as x2."""
    expected = expected[np.arange(n) % len(expected)]
    if name in ("ntk_diagonal", "ntk_features", "forward"):
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
