"""What was measured as one Markdown table, a row for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import NONE, in_columns

STAGES = ("load", "functionalize", "choose", "lower", "write", "verify")
EXAMPLES = (1, 2, 8)
TORCH_EXAMPLES = (1, 2)
_SHOWN_OF_A_FAILURE = 40  # characters

Row = Mapping[str, Any]  # `title`, and of each step (export, cold, cached, torch) its facts, `failure` among them


def table(rows: Sequence[Row]) -> str:
    """All that was measured."""
    header = ["model", "parameters", *STAGES, "export s", "MiB", "load s", "start cold s", "start cached s"]
    header += [f"s an example, {n}" for n in EXAMPLES]
    header += [f"torch, {n}" for n in TORCH_EXAMPLES] + [f"torch / ours, {n}" for n in TORCH_EXAMPLES]
    header += ["off torch by", "GFLOP/s", "of matmul", "export GiB", "check GiB", "requests GiB", "torch GiB"]
    return in_columns(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    export, cold, cached = (row.get(step, {}) for step in ("export", "cold", "cached"))
    torch = row.get("torch", {})
    cells = [row["title"], _number(row.get("build", {}).get("parameters"), "{:,}")]
    cells += [_number(export.get("stages", {}).get(stage, {}).get("seconds"), "{:.1f}") for stage in STAGES]
    cells += [_number(export.get("export_seconds"), "{:.1f}", export), _number(export.get("bytes"), "{:.1f}", of=2**20)]
    cells += [_number(cold.get("load_seconds"), "{:.1f}"), _number(cold.get("start_seconds"), "{:.1f}", cold)]
    cells += [_number(cached.get("start_seconds"), "{:.1f}", cached)]
    cells += [_number(seconds_of_example(cached, n), "{:.3g}", cached) for n in EXAMPLES]
    cells += [_torch_seconds(torch, n) for n in TORCH_EXAMPLES]
    cells += [_number(_ratio(torch, cached, n), "{:.3g}×") for n in TORCH_EXAMPLES]
    cells += [_number(row.get("deviation"), "{:.0e}"), *_rates(row)]
    gib = (export, "peak_bytes"), (export, "peak_bytes_of_check"), (cached, "peak_bytes"), (torch, "peak_bytes")
    return cells + [_number(facts.get(key), "{:.1f}", of=2**30) for facts, key in gib]


def seconds_of_example(facts: Mapping[str, Any], n: int) -> float | None:
    """Of a request for the kernel of n examples with themselves, divided by n."""
    seconds = facts.get("seconds", {}).get(str(n))
    return seconds and seconds / n


def in_words(facts: Mapping[str, Any], step: str) -> str:
    """What a step came to, in a line."""
    if facts.get("failure"):
        return f"{facts['failure']} (during: {facts.get('phase', 'start')})"
    if step == "export":
        stages = ", ".join(f"{name} {stage['seconds']:.1f}" for name, stage in facts["stages"].items())
        return f"{facts['export_seconds']:.1f} s: {stages}"
    if step == "torch":
        found = facts["torch"].items()
        return ", ".join(f"{n}: {entry['seconds'] / int(n):.3g} s an example, {entry['way']}" for n, entry in found)
    if step in ("cold", "cached"):
        seconds = [f"{n}: {s / int(n):.3g} s an example" for n, s in facts.get("seconds", {}).items()]
        return ", ".join([f"start {facts['start_seconds']:.1f} s", *seconds])
    return "written"


def _rates(row: Row) -> tuple[str, str]:
    """Of two examples, by the engine's own count, in GFLOP/s and relative to a matrix product's."""
    flops, cached = row.get("export", {}).get("flops"), row.get("cached", {})
    seconds, matmul = cached.get("seconds", {}).get("2"), cached.get("matmul_flops_per_second")
    if not (flops and seconds and matmul):
        return NONE, NONE
    rate = (2 * flops["example"] + 4 * flops["pair"]) / seconds
    return f"{rate / 1e9:.0f}", f"{rate / matmul:.0%}"


def _torch_seconds(torch: Mapping[str, Any], n: int) -> str:
    entry = torch.get("torch", {}).get(str(n))
    if entry is None:
        return _number(None, "", torch)
    about = "" if entry["done"] == entry["outputs"] else "≈ "
    return f"{about}{entry['seconds'] / n:.3g}"


def _ratio(torch: Mapping[str, Any], ours: Mapping[str, Any], n: int) -> float | None:
    entry, seconds = torch.get("torch", {}).get(str(n)), ours.get("seconds", {}).get(str(n))
    return entry["seconds"] / seconds if entry and seconds else None


def _number(value: float | None, form: str, facts: Mapping[str, Any] | None = None, *, of: float = 1) -> str:
    """A number; if there is none, why its step failed."""
    if value is not None:
        return form.format(value / of if of != 1 else value)
    failure = str((facts or {}).get("failure") or NONE)
    return failure if len(failure) <= _SHOWN_OF_A_FAILURE else failure[: _SHOWN_OF_A_FAILURE - 1] + "…"
