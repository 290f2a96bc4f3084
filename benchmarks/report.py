"""Results as text: a table with a row for each model, and one with a row for each measurement. Both are Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.contenders import CONTENDERS, OURS

NONE = "–"
_SHOWN_OF_A_FAILURE = 48  # characters, in the summary
_RIGHT = 1e-3  # a kernel further off is said to be so beside its time

Entry = Mapping[str, Any]  # one contender's: `failure`, and the facts that its worker reported


def summary(rows: Sequence[Mapping[str, Any]], contenders: Sequence[str]) -> str:
    """A row for each model: times of a call in ms, how many times as long as ours the best others take, rates.

    Args:
      rows: of each model `title`, `parameters`, `n`, `outputs` and `entries`, by contender.
      contenders: in the order of the columns.
    """
    families = [f for f in ("neural-tangents", "torch") if any(CONTENDERS[c].family == f for c in contenders)]
    header = ["model", "parameters", "N×N", "O", *(f"{CONTENDERS[c].title} ms" for c in contenders)]
    header += [f"best of {'NT' if f == 'neural-tangents' else f} / ours" for f in families]
    header += [
        "ours off by",
        "GFLOP/s",
        "of matmul",
        *(f"{CONTENDERS[c].title} compile s" for c in _compiled(contenders)),
    ]
    header += [f"{CONTENDERS[c].title} MiB" for c in _compiled(contenders)]
    body = []
    for row in rows:
        entries = row["entries"]
        ours = entries.get(OURS.name, {})
        cells = [row["title"], _number(row["parameters"], "{:,}"), f"{row['n']}×{row['n']}"]
        cells += [_number(row["outputs"], "{}")]
        cells += [_outcome(entries.get(c, {})) for c in contenders]
        cells += [_ratio(entries, family) for family in families]
        cells += [_number(ours.get("deviation"), "{:.1e}"), *_rates(ours)]
        cells += [_number(entries.get(c, {}).get("compile_seconds"), "{:.1f}") for c in _compiled(contenders)]
        cells += [_mib(entries.get(c, {}).get("peak_bytes")) for c in _compiled(contenders)]
        body.append(cells)
    return in_columns(header, body)


def details(rows: Sequence[Mapping[str, Any]], contenders: Sequence[str]) -> str:
    """A row for each measurement, of models as for `summary`."""
    header = ["model", "contender", "median ms", "min ms", "max ms", "calls", "lower s", "compile s"]
    header += ["peak MiB", "later peak MiB", "off by", "note"]
    body = []
    for row in rows:
        for name in contenders:
            entry = row["entries"].get(name, {})
            times = [_ms(entry.get(f"{kind}_seconds")) for kind in ("median", "min", "max")]
            note = entry.get("failure") or entry.get("setting") or ""
            if entry.get("failure") and entry.get("phase"):
                note += f" (during: {entry['phase']})"
            body.append(
                [row["name"], name, *times, _number(entry.get("calls"), "{}")]
                + [_number(entry.get(key), "{:.1f}") for key in ("lower_seconds", "compile_seconds")]
                + [_mib(entry.get(key)) for key in ("peak_bytes", "later_peak_bytes")]
                + [_number(entry.get("deviation"), "{:.1e}"), note]
            )
    return in_columns(header, body)


def median_seconds(entry: Entry) -> float | None:
    """The time of a call; None of a contender that failed."""
    return None if entry.get("failure") else entry.get("median_seconds")


def in_words(entry: Entry) -> str:
    """A contender's result in one line."""
    seconds = median_seconds(entry)
    if seconds is None:
        return f"{entry['failure']} (during: {entry.get('phase', 'start')})"
    return f"{_ms(seconds)} ms, off by {entry['deviation']:.1e}"


def _compiled(contenders: Sequence[str]) -> list[str]:
    """Those whose compilation and memory the summary shows: ours, and what it must not be worse than."""
    return [c for c in (OURS.name, "structured_derivatives") if c in contenders]


def _ratio(entries: Mapping[str, Entry], family: str) -> str:
    ours = median_seconds(entries.get(OURS.name, {}))
    times = [median_seconds(e) for name, e in entries.items() if CONTENDERS[name].family == family]
    finished = [t for t in times if t is not None]
    return f"{min(finished) / ours:.3g}×" if ours and finished else NONE


def _rates(ours: Entry) -> tuple[str, str]:
    """Our rate by the engine's own count, in GFLOP/s and relative to a matrix product's."""
    seconds, flops, matmul = median_seconds(ours), ours.get("flops"), ours.get("matmul_flops_per_second")
    if not (seconds and flops and matmul):
        return NONE, NONE
    return f"{flops / seconds / 1e9:.0f}", f"{flops / seconds / matmul:.0%}"


def _outcome(entry: Entry) -> str:
    seconds = median_seconds(entry)
    if seconds is not None:
        off = entry["deviation"]
        return _ms(seconds) + ("" if off <= _RIGHT else f" (off by {off:.0e})")
    failure = str(entry.get("failure") or NONE)
    return failure if len(failure) <= _SHOWN_OF_A_FAILURE else failure[: _SHOWN_OF_A_FAILURE - 1] + "…"


def _ms(seconds: float | None) -> str:
    return _number(seconds and 1e3 * seconds, "{:.4g}")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _mib(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**20:.0f}"


def in_columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned as text too: the first to the left, the others to the right."""
    cells = [list(header), *([c.replace("|", "\\|") for c in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + ":" if k else "-" * w for k, w in enumerate(widths)]
    return "\n".join(map(line, [cells[0], rule, *cells[1:]]))
