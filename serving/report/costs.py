"""The section about the export: what it takes, and how right it was found to be."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys

from serving.dataset.export import Export
from serving.report.asking import size_of
from serving.report.section import Section, Table, counted, mebibytes


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured while the page was made.

    Attributes:
      examples: of the kernel.
      load, kernel: seconds.
    """

    examples: int
    load: float
    kernel: float


def export_section(export: Export, measured: Measured) -> Section:
    """Time and memory, as the manifest has them and as they were measured here."""
    manifest = export.manifest
    verification, recorded = manifest["verification"], manifest.get("bytes") or {}
    seconds, flops = verification.get("seconds") or {}, manifest.get("flops")
    size, pairs = size_of(export.path), measured.examples * (measured.examples + 1) // 2
    worst = max((verification.get("errors") or {}).values(), default=math.nan)
    parameters = sum(math.prod(v["shape"]) for v in manifest["variables"]["trainable"].values())
    here = f"{pairs / measured.kernel:,.0f} pairs/s" if measured.kernel > 0 else ""
    sentence = (
        f"The kernel of {counted(measured.examples, 'example')} took {measured.kernel:.1f} s here"
        f"{f' ({here})' if here else ''}, with what its first call compiles; the SavedModel has {mebibytes(size)}"
    )
    if not math.isnan(worst):
        sentence += f", and is within {worst:.1e} of float64"
    ntk, versions = manifest["configuration"]["ntk"], manifest["versions"]
    rows = [
        ("SavedModel", str(export.path)),
        ("exported", f"{manifest['created']}"),
        ("trainable variables, parameters", f"{len(manifest['variables']['trainable']):,}, {parameters:,}"),
        ("implementation, precision", f"{manifest.get('implementation')}, {ntk.get('precision')}"),
        ("trace axes, diagonal axes", f"{ntk.get('trace_axes')}, {ntk.get('diagonal_axes')}"),
        ("platforms", ", ".join(manifest["platforms"])),
        ("size of the SavedModel", mebibytes(size)),
        ("loaded here in", f"{measured.load:.2f} s"),
        (f"kernel of {counted(measured.examples, 'example')} here", f"{measured.kernel:.2f} s"),
        ("most memory of this process", mebibytes(_peak())),
        (
            "seconds of verification",
            ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in seconds.items()),
        ),
        ("features of an example", mebibytes(recorded["features_of_an_example"]) if recorded else ""),
        (
            "memory of a request at most, beside inputs and result",
            mebibytes(recorded["request_at_most"]) if recorded else "",
        ),
        ("largest difference from float64", "" if math.isnan(worst) else f"{worst:.2e}"),
    ]
    if isinstance(flops, dict):
        rows += [
            (f"operations, {key.replace('_', ' ')}", f"{value:.3g}")
            for key, value in flops.items()
            if isinstance(value, (int, float))
        ]
    rows += [(name, str(version)) for name, version in versions.items()]
    return Section(
        "export",
        "Time and memory",
        f"{sentence}.",
        tables=[Table("The export", ("quantity", "value"), [row for row in rows if row[1]], shown=True)],
        notes=["Measured once, on this machine, with whatever else it had to do."],
    )


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
