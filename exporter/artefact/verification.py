"""Is the written SavedModel right? It is run where only TensorFlow is, and compared with a float64 Jacobian."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.experimental
import numpy as np

from exporter.config import NtkConfig, VerifyConfig
from exporter.errors import ExportError
from exporter.functionalize import FunctionalModel
from exporter.ntk.precision import in_float64
from exporter.ntk.reference import Vjps, jitted_vjps, reference_ntk
from exporter.plan.sampling import sample_inputs
from exporter.plan.signatures import SIGNATURES, input_names, param_names
from exporter.progress import Note
from serving.shared import reference

# Bounds of the reference, in numbers of the Jacobians of all examples: the first of time (those of 2 examples of a
# ResNet-50 with 10 outputs), the second of memory, 8 bytes each.
MOST_NUMBERS = 5e8
MOST_NUMBERS_AT_ONCE = 5e8

# Changes of parameters and inputs, in roundings of each number, that may put an activation on the other side of a kink.
_ROUNDINGS = (1, 2, 4)

_SCRIPT = Path(__file__).with_name("reload_script.py")


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was measured.

    Attributes:
      examples: number of examples that the kernels were computed on, fewer than asked for if the model is large.
      errors: for each signature and method the largest difference from float64, relative to its largest entry; but for
        entries at kinks.
      at_kinks: the same of the entries at kinks, for signatures and methods that have any: entries where float64
        itself jumps by about as much if parameters and inputs change by a rounding, as the derivative of a ReLU does.
      asymmetry: largest |K - Kᵀ| of the symmetric kernel, relative to its largest entry.
      smallest_eigenvalue: of the symmetric kernel, relative to the largest one; None without that signature.
      seconds: to load, of the first call of everything, and of a later call of each signature, in a fresh process.
      reference: for each signature what `serving.shared.reference` keeps of the float64 result; those with two sides
        were called with all examples and with the first half of them.
    """

    examples: int
    errors: Mapping[str, float]
    at_kinks: Mapping[str, float]
    asymmetry: float | None
    smallest_eigenvalue: float | None
    seconds: Mapping[str, float]
    reference: Mapping[str, Any]

    @property
    def worst(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())


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
      note: told how far it is.

    Returns:
      What was measured.

    Raises:
      ExportError: it cannot be loaded or called, or an entry that is not at a kink is further off than `config.rtol`;
        says where.
    """
    n = _affordable_examples(model, ntk, config.examples)
    x = sample_inputs(model.inputs, n)
    sides = {"x": x, "x1": x, "x2": tuple(a[: reference.few(n)] for a in x)}
    params = _perturbed(model.trainable)
    vjps = jitted_vjps(model.apply_fn, model.trainable, model.frozen, x)
    vjps = _counted(vjps, n * math.prod(size or 1 for size in model.output.shape[1:]), note)
    expected = _reference(model, ntk, sides, params, signatures, coupled, vjps)
    requests = {} if coupled else requests
    note("the SavedModel, in a process of its own")
    outputs, seconds = _run(saved_model, served, sides, params, signatures, requests)
    jumps: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    at_kinks: dict[str, float] = {}
    for key, value in outputs.items():
        kind, name, *count = key.split("/")
        right = _repeated(name, expected[name], int(count[0])) if count else expected[name]
        error = _error(value, right)
        if config.rtol < error < math.inf and name != "forward":
            jumps = jumps or _jumps(model, ntk, sides, params, coupled, vjps, expected)
            jump = _repeated(name, jumps[name], int(count[0])) if count else jumps[name]
            value, difference = _without_kinks(value, right, jump, config.rtol)
            error = _error(value, right)
            at_kinks[f"{kind}/{name}"] = max(difference, at_kinks.get(f"{kind}/{name}", 0.0))
        if not error <= config.rtol:
            raise ExportError(_failure(key, value, right, error, config.rtol))
        errors[f"{kind}/{name}"] = max(error, errors.get(f"{kind}/{name}", 0.0))
    asymmetry, smallest = None, None
    if "ntk_symmetric" in signatures:
        asymmetry, smallest = _spectrum(outputs["signature/ntk_symmetric"], ntk, model)
        allowed = config.rtol + at_kinks.get("signature/ntk_symmetric", 0.0)
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
    return Verification(n, errors, at_kinks, asymmetry, smallest, seconds, recorded)


def _affordable_examples(model: FunctionalModel, ntk: NtkConfig, examples: int) -> int:
    """So many examples, or as many as the reference can be computed for; 1 at least."""
    outputs = model.output.shape[1:]
    alone = {a % len(model.output.shape) - 1 for a in (*ntk.trace_axes, *ntk.diagonal_axes)}
    kept = math.prod(size or 1 for a, size in enumerate(outputs) if a not in alone)
    parameters = sum(v.size for v in model.trainable.values())
    most = min(MOST_NUMBERS / math.prod(size or 1 for size in outputs), MOST_NUMBERS_AT_ONCE / kept) / parameters
    return max(1, min(examples, int(most)))


def _counted(vjps: Vjps, of_kernel: int, note: Note) -> Vjps:
    """`vjps` that tells how many gradients it has computed; a kernel needs so many at least."""
    done = 0

    def counted(trainable: Any, frozen: Any, x: tuple[Any, ...], cotangents: Any) -> list[Any]:
        nonlocal done
        gradients = vjps(trainable, frozen, x, cotangents)
        done += len(cotangents)
        note(f"{done:,} float64 gradients, {of_kernel:,} for a kernel")
        return gradients

    return counted


def _perturbed(trainable: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Other parameters than the model's own, for `ntk_with_params`."""
    rng = np.random.default_rng(1)
    return {k: (v * (1 + 0.1 * rng.standard_normal(v.shape))).astype(v.dtype) for k, v in trainable.items()}


def _reference(
    model: FunctionalModel,
    ntk: NtkConfig,
    sides: Mapping[str, tuple[np.ndarray, ...]],
    params: Mapping[str, np.ndarray],
    signatures: Sequence[str],
    coupled: bool,
    vjps: Vjps,
) -> dict[str, np.ndarray]:
    """float64 values for each signature."""

    x, few = sides["x"], len(sides["x2"][0])

    def kernel(trainable: Any, x1: Any, x2: Any = None) -> np.ndarray:
        return reference_ntk(
            model.apply_fn,
            trainable,
            model.frozen,
            x1,
            x2,
            trace_axes=ntk.trace_axes,
            diagonal_axes=ntk.diagonal_axes,
            coupled=coupled,
            vjps=vjps,
        )

    def of_two(trainable: Any) -> np.ndarray:
        return kernel(trainable, x, sides["x2"]) if coupled else kernel(trainable, x)[:, :few]

    expected: dict[str, np.ndarray] = {}
    if not {"ntk", "ntk_symmetric", "ntk_diagonal"}.isdisjoint(signatures):
        symmetric = kernel(model.trainable, x)
        expected |= {"ntk_symmetric": symmetric, "ntk_diagonal": np.einsum("nn...->n...", symmetric)}
    if "ntk" in signatures:
        expected["ntk"] = of_two(model.trainable) if coupled else symmetric[:, :few]
    if "ntk_with_params" in signatures:
        expected["ntk_with_params"] = of_two(params)
    if "forward" in signatures:
        with jax.experimental.enable_x64():
            forward = in_float64(model.apply_fn, model.trainable, model.frozen, x)
            expected["forward"] = np.asarray(jax.jit(forward)(model.trainable, model.frozen, x))
    return expected


def _jumps(
    model: FunctionalModel,
    ntk: NtkConfig,
    sides: Mapping[str, tuple[np.ndarray, ...]],
    params: Mapping[str, np.ndarray],
    coupled: bool,
    vjps: Vjps,
    expected: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """By how much each entry of the signatures' float64 kernels jumps within a few roundings of parameters and inputs.

    The largest |K(θ + δ) + K(θ - δ) - 2 K(θ)| of some random δ: what is smooth cancels however ill-conditioned it is,
    and what is left is the change of the derivative of an activation, where one of the sides is beyond its kink.
    """
    rng = np.random.default_rng(0)
    rounding = float(np.finfo(np.float64 if model.output.dtype == "float64" else np.float32).eps)
    arrays = (model.trainable, params, sides["x"])
    of_any_dtype = in_float64(model.apply_fn, model.trainable, model.frozen, sides["x"])
    kernels = {name: value for name, value in expected.items() if name != "forward"}

    def at(signs: Any, size: float) -> dict[str, np.ndarray]:
        def moved(value: np.ndarray, sign: np.ndarray) -> np.ndarray:
            floating = jax.numpy.issubdtype(value.dtype, np.floating)
            return value.astype(np.float64) * (1 + size * sign) if floating else value

        trainable, others, x = jax.tree.map(moved, arrays, signs)
        there = dataclasses.replace(model, apply_fn=of_any_dtype, trainable=trainable)
        few = {"x": x, "x1": x, "x2": tuple(a[: len(b)] for a, b in zip(x, sides["x2"], strict=True))}
        with jax.experimental.enable_x64():
            return _reference(there, ntk, few, others, list(kernels), coupled, vjps)

    largest = {name: np.zeros_like(kernel) for name, kernel in kernels.items()}
    for roundings in _ROUNDINGS:
        signs = jax.tree.map(lambda value: rng.uniform(-1, 1, value.shape), arrays)
        size = roundings * rounding
        ahead, behind = at(signs, size), at(signs, -size)
        for name, kernel in kernels.items():
            largest[name] = np.maximum(largest[name], np.abs(ahead[name] + behind[name] - 2 * kernel))
    return largest


def _without_kinks(value: np.ndarray, right: np.ndarray, jump: np.ndarray, rtol: float) -> tuple[np.ndarray, float]:
    """`value` with the right entries where it is off by no more than they jump, and the largest difference there."""
    largest, difference = np.max(np.abs(right)) or 1.0, np.abs(value - right)
    kink = (jump > rtol * largest) & (difference <= jump + rtol * largest)
    return np.where(kink, right, value), float(np.max(difference[kink], initial=0.0) / largest)


def _repeated(name: str, expected: np.ndarray, n: int) -> np.ndarray:
    """What a signature should give for n examples that are those of `expected` again and again."""
    expected = expected[np.arange(n) % len(expected)]
    if name in ("ntk_diagonal", "forward"):
        return expected
    columns = n if name == "ntk_symmetric" else reference.few(n)
    return expected[:, np.arange(columns) % expected.shape[1]]


def _run(
    saved_model: Path,
    served: FunctionalModel,
    sides: Mapping[str, tuple[np.ndarray, ...]],
    params: Mapping[str, np.ndarray],
    signatures: Sequence[str],
    requests: Mapping[str, Sequence[int]],
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What the SavedModel computes in a process of its own, and the times there."""
    arrays: dict[str, np.ndarray] = {}
    arguments: dict[str, Any] = {}
    side_of: dict[str, str] = {}
    for side, values in sides.items():
        names = input_names(side, served.inputs)
        side_of |= dict.fromkeys(names, side)
        arrays |= {n: a.astype(spec.dtype) for n, a, spec in zip(names, values, served.inputs, strict=True)}
        arguments[side] = names[0] if len(names) == 1 else list(names)
    keys = param_names(served.trainable)
    arrays |= {keys[path]: value.astype(served.trainable[path].dtype) for path, value in params.items()}
    calls = {
        name: {
            "arguments": [*(arguments[s] for s in SIGNATURES[name].sides), *([keys] * SIGNATURES[name].takes_params)],
            "rows": {
                n: {k: reference.few(n) if s == "x2" else n for k, s in side_of.items() if s in SIGNATURES[name].sides}
                for n in requests.get(name, ())
            },
        }
        for name in signatures
    }
    with tempfile.TemporaryDirectory() as directory:
        inputs, outputs = (os.path.join(directory, name) for name in ("inputs.npz", "outputs.npz"))
        # NumPy's files know no bfloat16; float32 holds it exactly, and the script casts to the signature's dtype.
        arrays = {k: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for k, a in arrays.items()}
        arrays["calls"] = np.frombuffer(json.dumps(calls).encode(), np.uint8)
        np.savez(inputs, allow_pickle=False, **arrays)
        command = [sys.executable, "-P", str(_SCRIPT), str(saved_model), inputs, outputs]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise ExportError(
                "Verification failed: expected the SavedModel to load and run in a process that can import TensorFlow "
                f"alone, received exit code {done.returncode}: {lines[-1] if lines else 'no message'}"
            )
        with np.load(outputs) as file:
            results = dict(file.items())
    seconds = json.loads(results.pop("seconds").tobytes())
    return results, seconds


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected entry; infinite for other shapes or values not finite."""
    if value.shape != expected.shape or not np.all(np.isfinite(value)):
        return float("inf")
    largest = np.max(np.abs(expected), initial=0.0)
    difference = np.max(np.abs(value - expected), initial=0.0)
    return float(difference / largest) if largest > 0 else float(difference)


def _failure(key: str, value: np.ndarray, expected: np.ndarray, error: float, rtol: float) -> str:
    kind, name, *_ = key.split("/")
    if value.shape != expected.shape:
        return f"Verification failed: expected {kind} {name} of shape {expected.shape}, received {value.shape}."
    where = np.unravel_index(np.argmax(np.nan_to_num(np.abs(value - expected), nan=np.inf)), value.shape)
    index = ", ".join(map(str, where))
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
