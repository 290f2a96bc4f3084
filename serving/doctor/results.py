"""Calls every signature with the examples that the export recorded, and compares with what it recorded."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serving.doctor.report import Check, bad, good, note
from serving.shared import reference

# Calls a signature with its inputs by name, for outputs by name; raises whatever says why it cannot.
Call = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

_SIDES = {"ntk": ("x1", "x2")}  # others are of x
_ROUNDING = {"tensorfloat32": 1e-2, "bfloat16": 1e-1}  # of these precisions, on accelerators
_WARM_CALLS = 5


def check_results(manifest: Mapping[str, Any], call: Call, failure: type[Exception]) -> list[Check]:
    """For each signature of which the export recorded a result: does it answer, how fast, and is it right?

    Of a signature with several outputs each has a result, named signature/output.

    Args:
      manifest: of the export.
      call: calls a signature.
      failure: what `call` raises.
    """
    recorded = manifest["verification"].get("reference")
    if not recorded:
        words = "the export recorded no reference values: export again, or with smaller files in export.examples"
        return [note("results", words)]
    checks: list[Check] = []
    for name, values in recorded.items():
        checks += _check_signature(name, values, manifest, call, failure)
    disabled = next(
        (c for c in checks if re.search("XLA compilation disabled|xla_cpu_compilation_enabled", c.detail)), None
    )
    return [bad("XLA", disabled.detail) if disabled else good("XLA", "enabled"), *checks]


def _check_signature(
    name: str, values: Mapping[str, Any], manifest: Mapping[str, Any], call: Call, failure: type[Exception]
) -> list[Check]:
    signature, _, output = name.partition("/")
    inputs = _inputs(signature, manifest)
    try:
        (outputs, first), *later = (_timed(call, signature, inputs) for _ in range(1 + _WARM_CALLS))
    except failure as error:
        return [bad(name, str(error))]
    median = float(np.median([seconds for _, seconds in later]))
    n = manifest["verification"]["examples"]
    result = np.asarray(outputs[output] if output else next(iter(outputs.values())))
    difference = reference.difference(values, result)
    configuration, verification = manifest["configuration"], manifest["verification"]
    allowed = verification.get("rtol", configuration["export"]["verify"]["rtol"])
    rtol = max(allowed, _ROUNDING.get(configuration["ntk"]["precision"], 0.0))
    rtol += verification.get("at_kinks", {}).get(f"signature/{name}", 0.0)
    kind = good if difference <= rtol else bad
    words = f"within {difference:.1e} of float64 on {n} recorded examples"
    if result.shape != tuple(values["shape"]):
        words = f"shape {result.shape}, where the export recorded {tuple(values['shape'])}"
    elif kind is bad:
        words += f", expected {rtol:g}"
    return [kind(name, words), good(f"{name} time", f"first call {_ms(first)}, later {_ms(median)}")]


def _inputs(name: str, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the export called the signature with."""
    specs, n = manifest["inputs"], manifest["verification"]["examples"]
    if recorded := manifest["verification"].get("inputs"):
        examples = reference.recorded_examples(recorded)
        examples = tuple(a if a.dtype == object else a.astype(s["dtype"]) for a, s in zip(examples, specs, strict=True))
    else:
        examples = reference.examples([(spec["shape"], spec["dtype"]) for spec in specs], n)
    counts = {"x": n, "x1": n, "x2": reference.few(n)}
    return {
        f"{side}{spec['input'].removeprefix('x')}": array[: counts[side]]
        for side in _SIDES.get(name, ("x",))
        for spec, array in zip(specs, examples, strict=True)
    }


def _timed(call: Call, name: str, inputs: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], float]:
    start = time.perf_counter()
    result = call(name, inputs)
    return result, time.perf_counter() - start


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
