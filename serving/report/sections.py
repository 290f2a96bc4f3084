"""Sections about a kernel: a heat map, classes, the spectrum, alignment, layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.report import figures, numbers
from serving.report.section import Section, Table, counted, listed, number, percent
from serving.report.targets import Targets
from serving.shared import spectrum
from serving.shared.spectrum import RIDGE

DRAWN = 240  # rows of the heat map, about; more are means
SPECTRUM = 2000  # examples whose eigenvalues are computed at most
_RIDGES = np.logspace(0, -7, 29)
_SHUFFLES = 20
_CLASSES = 60
_MANY = 24  # bars


def kernel_section(
    kernel: np.ndarray, cosines: np.ndarray, targets: Targets | None, names: Sequence[str], kept: str
) -> Section:
    """The heat map, ordered by class.

    Args:
      kernel, cosines: (n, n).
      targets: of the examples; None if there are none.
      names: of the examples.
      kept: what was done with kept axes; "" for nothing.
    """
    n = len(kernel)
    labels = targets.labels if targets is not None else None
    notes = ["A cosine is K(a, b) / √(K(a, a) K(b, b)): how much alike a training step on either moves the outputs."]
    if labels is not None:
        order, groups = numbers.typical_first(cosines, labels), np.sort(labels)
        notes.append("Ordered by class; in each class the examples that are most alike the others come first.")
    elif targets is not None:
        order, groups = np.argsort(targets.matrix[:, 0], kind="stable"), np.zeros(n)
        notes.append("Ordered by the first target, ascending.")
    else:
        order, groups = np.arange(n), np.zeros(n)
        notes.append("The data has no y: the order is that of the data.")
    ranges = numbers.blocks(groups, n if n <= DRAWN else DRAWN)
    if n > DRAWN:
        notes.append(
            f"Each of {len(ranges)} × {len(ranges)} fields is the mean over {n / len(ranges):.1f} examples a side."
        )
    if kept:
        notes.append(kept)
    dead = int(np.sum(np.diag(kernel) <= 0))
    if dead:
        notes.append(
            f"{counted(dead, 'example')} of {n:,} have no kernel with themselves: no variable moves their outputs. "
            "Their cosines are shown as 0."
        )
    square = np.ix_(order, order)
    edges = np.flatnonzero(groups[1:] != groups[:-1]) + 1
    starts = np.array([r.start for r in ranges])
    drawn = numbers.pooled(cosines[square], ranges)
    figure = figures.heat_map(
        drawn,
        numbers.pooled(kernel[square], ranges),
        _row_labels(order, groups, ranges, labels, names),
        [float(np.searchsorted(starts, edge)) - 0.5 for edge in edges],
        _class_ticks(groups, starts) if labels is not None else {},
    )
    return Section(
        "kernel",
        "Kernel",
        _about_pairs(kernel, cosines, targets),
        [("kernel by class" if labels is not None else "kernel", figure)],
        notes=notes,
        tables=[Table("Kernel", ("quantity", "value"), _kernel_facts(kernel, cosines))],
    )


def _row_labels(
    order: np.ndarray, groups: np.ndarray, ranges: Sequence[slice], labels: np.ndarray | None, names: Sequence[str]
) -> list[str]:
    texts = []
    for r in ranges:
        of = f"class {groups[r.start]} · " if labels is not None else ""
        if r.stop - r.start == 1:
            texts.append(f"{of}{names[order[r.start]]}")
        else:
            first = int(np.searchsorted(groups, groups[r.start]))
            texts.append(f"{of}examples {r.start - first + 1:,} to {r.stop - first:,}")
    return [f"{text} ({k})" if texts.count(text) > 1 else text for k, text in enumerate(texts)]


def _class_ticks(groups: np.ndarray, starts: np.ndarray) -> dict[float, str]:
    present = np.unique(groups)
    if len(present) > _MANY:
        present = present[:: math.ceil(len(present) / _MANY)]
    ticks = {}
    for label in present:
        first, last = np.searchsorted(groups, label), np.searchsorted(groups, label, "right")
        places = np.flatnonzero((starts >= first) & (starts < last))
        ticks[float(places[0] + places[-1]) / 2] = str(label)
    return ticks


def _about_pairs(kernel: np.ndarray, cosines: np.ndarray, targets: Targets | None) -> str:
    n = len(kernel)
    if n == 1:
        return (
            f"One example: its kernel with itself is {number(float(kernel[0, 0]))}. Everything about pairs is left out."
        )
    overall = (float(cosines.sum(dtype=np.float64)) - float(np.trace(cosines))) / (n * (n - 1))
    if targets is None or targets.labels is None or len(targets.names) < 2:
        return f"Two different examples have a cosine of {overall:.2f} on average."
    means, counts = numbers.means_between(cosines, targets.matrix), targets.matrix.sum(0)
    pairs = counts * (counts - 1)
    own = float(np.nansum(np.diag(means) * pairs) / pairs.sum()) if pairs.sum() else math.nan
    other = (overall * n * (n - 1) - (0 if math.isnan(own) else own * pairs.sum())) / (n * (n - 1) - pairs.sum())
    if math.isnan(own):
        return f"No class has two examples; two of different classes have a cosine of {other:.2f} on average."
    text = f"Two examples of one class have a cosine of {own:.2f} on average, two of different classes {other:.2f}"
    ratio = "the kernel tells classes apart" if own - other > 0.1 else "the kernel hardly tells classes apart"
    return f"{text}: {ratio}."


def _kernel_facts(kernel: np.ndarray, cosines: np.ndarray) -> list[tuple[str, str]]:
    diagonal = np.diag(kernel).astype(np.float64)
    facts = [
        ("examples", f"{len(kernel):,}"),
        ("mean of the diagonal", number(float(diagonal.mean()), 6)),
        ("smallest and largest of the diagonal", f"{number(float(diagonal.min()))} to {number(float(diagonal.max()))}"),
        ("largest |K - Kᵀ| of the largest entry", number(numbers.asymmetry(kernel), 2)),
    ]
    if len(kernel) > 1:
        off = cosines[~np.eye(len(cosines), dtype=bool)]
        quantiles = np.quantile(off, (0.01, 0.25, 0.5, 0.75, 0.99))
        facts += [
            (f"cosine of different examples, {name}", f"{value:.4f}")
            for name, value in zip(
                ("1st percentile", "lower quartile", "median", "upper quartile", "99th percentile"),
                quantiles.tolist(),
                strict=True,
            )
        ]
    return facts


def classes_section(cosines: np.ndarray, targets: Targets | None) -> Section | None:
    """Which classes are alike; None where there are not two."""
    if targets is None or targets.labels is None or len(targets.names) < 2:
        return None
    if len(targets.names) > _CLASSES:
        return Section(
            "classes", "Classes", f"Left out: there are {len(targets.names):,} classes, and {_CLASSES} can be shown."
        )
    means = numbers.means_between(cosines, targets.matrix)
    between = np.where(np.eye(len(means), dtype=bool), np.nan, means)
    i, j = np.unravel_index(np.nanargmax(between), between.shape)
    k, m = np.unravel_index(np.nanargmin(between), between.shape)
    name = targets.names
    sentence = f"Classes {name[min(i, j)]} and {name[max(i, j)]} are the most alike (mean cosine {between[i, j]:.2f})"
    if len(name) > 2:
        sentence += f", {name[min(k, m)]} and {name[max(k, m)]} the least ({between[k, m]:.2f})"
    own = np.diag(means)
    if not np.all(np.isnan(own)):
        loose, tight = int(np.nanargmin(own)), int(np.nanargmax(own))
        sentence += f"; class {name[tight]} is the most uniform ({own[tight]:.2f})"
        sentence += f", class {name[loose]} the most varied ({own[loose]:.2f})" if loose != tight else ""
    rows = [
        (f"class {a}", *(f"{v:.4f}" if np.isfinite(v) else "" for v in row)) for a, row in zip(name, means, strict=True)
    ]
    return Section(
        "classes",
        "Classes",
        f"{sentence}.",
        [("mean cosine between classes", figures.class_map(means, name))],
        notes=["Examples are not paired with themselves."],
        tables=[Table("Mean cosine between classes", ("", *name), rows)],
    )


def spectrum_section(kernel: np.ndarray) -> tuple[Section, str]:
    """Eigenvalues and effective dimension; and that dimension for the beginning of the page."""
    n = len(kernel)
    notes = []
    if n > SPECTRUM:
        some = np.sort(np.random.default_rng(0).choice(n, SPECTRUM, replace=False))
        kernel = kernel[np.ix_(some, some)]
        notes.append(
            f"Of {SPECTRUM:,} of the {n:,} examples, drawn at random: eigenvalues take the cube of the number."
        )
    used = len(kernel)
    raw = spectrum.eigenvalues(kernel)
    values, smallest = np.maximum(raw, 0.0), float(raw[-1])
    trace = float(values.sum())
    if not trace:
        return Section("spectrum", "Spectrum", "All eigenvalues are 0: no variable moves any output.", notes=notes), "0"
    dimension = spectrum.effective_dimension(values)
    dimensions = np.array([spectrum.effective_dimension(values, ridge) for ridge in _RIDGES])
    half, most = numbers.holding(values, 0.5), numbers.holding(values, 0.95)
    sentence = (
        f"The largest eigenvalue holds {percent(values[0] / trace)} of the trace, "
        f"{counted(half, 'eigenvalue')} half of it and {most:,} of {used:,} hold 95%. With λ = {RIDGE:g} of the "
        f"trace the effective dimension tr K(K + λ)⁻¹ is {dimension:,.1f}."
    )
    if smallest < -1e-6 * values[0]:
        part = percent(-smallest / values[0], 4)
        notes.append(f"The smallest eigenvalue is {smallest:.2g}, more than rounding: {part} of the largest.")
    rounding = 1e-7 if kernel.dtype == np.float32 else 1e-15
    notes.append(
        f"float64 eigenvalues of a {kernel.dtype} kernel: below about {rounding * values[0] / trace:.0e} of the "
        "trace they are rounding, and not drawn."
    )
    ranks = sorted({k for k in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, used) if k <= used})
    held = np.cumsum(values) / trace
    return (
        Section(
            "spectrum",
            "Spectrum",
            sentence,
            [
                ("eigenvalues", figures.spectrum(values, rounding * values[0])),
                ("effective dimension", figures.effective_dimension(_RIDGES, dimensions, RIDGE, dimension)),
            ],
            notes=notes,
            tables=[
                Table(
                    "Eigenvalues",
                    ("rank", "eigenvalue", "share of the trace", "held together"),
                    [
                        (f"{k}", f"{value:.6g}", f"{value / trace:.3e}", percent(held[k - 1], 3))
                        for k, value in zip(ranks, values[np.array(ranks) - 1].tolist(), strict=True)
                    ],
                ),
                Table(
                    "Effective dimension",
                    ("λ / trace", "λ", "dimension"),
                    [
                        (f"{r:.0e}", f"{r * trace:.4g}", f"{d:,.2f}")
                        for r, d in zip(_RIDGES[::4], dimensions[::4], strict=True)
                    ]
                    + [("participation ratio (Σμ)² / Σμ²", "", f"{numbers.participation(values):,.2f}")],
                ),
            ],
        ),
        f"{dimension:,.1f}",
    )


def alignment_section(kernel: np.ndarray, targets: Targets | None) -> tuple[Section, str | None]:
    """Centred kernel-target alignment; and it for the beginning of the page."""
    title = "Alignment"
    if targets is None:
        return Section("alignment", title, "Left out: the data has no y."), None
    if len(kernel) < 2:
        return Section("alignment", title, "Left out: it takes two examples."), None
    if not np.any(np.ptp(targets.matrix, axis=0)):
        same = f"are of class {targets.names[0]}" if targets.is_classes else "have the same target"
        return Section("alignment", title, f"Left out: all examples {same}."), None
    centred = spectrum.centred(kernel)
    norm = float(np.linalg.norm(centred))
    scale = float(np.max(np.abs(kernel), initial=0.0)) * len(kernel)
    if norm <= 1e-6 * scale:
        return Section("alignment", title, "Left out: the kernel is the same for all pairs."), None
    total = spectrum.centred_alignment(centred, targets.matrix, norm)
    shuffled = numbers.shuffled_alignments(centred, targets.matrix, _SHUFFLES)
    different = len(targets.names) > (2 if targets.is_classes else 1)  # of two classes each is the other's complement
    columns = targets.matrix if different else targets.matrix[:, :0]
    each = [spectrum.centred_alignment(centred, columns[:, k : k + 1], norm) for k in range(columns.shape[1])]
    random = float(shuffled.mean())
    what = "class" if targets.is_classes else "target"
    sentence = (
        f"The centred alignment of kernel and targets is {total:.3f} (1: the kernel is that of the targets); with the "
        f"same targets given to other examples at random it is {random:.3f}."
    )
    names = ["all", *(f"class {name}" if targets.is_classes else name for name in targets.names[: len(each)])]
    values = [total, *each]
    if len(each) > 2 and not np.all(np.isnan(each)):
        best, worst = int(np.nanargmax(each)), int(np.nanargmin(each))
        sentence += (
            f" Of one {what} against the others it is highest for {names[best + 1]} ({each[best]:.3f}), lowest for "
            f"{names[worst + 1]} ({each[worst]:.3f})."
        )
    shown = [k for k, value in enumerate(values) if not math.isnan(value)][: _MANY + 1]
    hover = [f"{names[k]}: <b>{values[k]:.4f}</b>" for k in shown]
    section = Section(
        "alignment",
        title,
        sentence,
        [
            (
                "alignment",
                figures.bars(
                    [names[k] for k in shown],
                    [values[k] for k in shown],
                    hover,
                    title="centred alignment",
                    line=(random, "random"),
                ),
            )
        ],
        notes=[
            "⟨K, YYᵀ⟩ / (|K| |YYᵀ|) of the centred kernel and targets (Cortes, Mohri, Rostamizadeh 2012).",
            *([f"The first {_MANY} of {len(each)} are drawn."] if len(values) > len(shown) > _MANY else []),
        ],
        tables=[
            Table(
                "Alignment",
                ("targets", "alignment"),
                [(name, f"{value:.6f}") for name, value in zip(names, values, strict=True)]
                + [
                    (f"at random, mean of {_SHUFFLES}", f"{random:.6f}"),
                    ("at random, largest", f"{shuffled.max():.6f}"),
                ],
            )
        ],
    )
    return section, f"{total:.3f}"


def layers_section(manifest: Mapping[str, Any]) -> Section:
    """Each variable's share of the kernel, as the manifest has it."""
    title = "Layers"
    shares, of = manifest["kernel"].get("shares"), manifest["kernel"].get("shares_of") or {}
    if not shares:
        return Section(
            "layers",
            title,
            "Left out: this export does not record the share of each variable. Export again with this version; exports "
            "that verify no kernel of the model's own variables have none.",
        )
    variables = manifest["variables"]["trainable"]
    sizes = {
        path: int(np.prod(variables[path]["shape"], dtype=np.int64)) if path in variables else 0 for path in shares
    }
    order = [path for path in variables if path in shares] + [path for path in shares if path not in variables]
    total = max(1, sum(sizes.values()))
    ranked = sorted(order, key=lambda path: -shares[path])
    first = ranked[0]
    sentence = (
        f"{first} holds {percent(shares[first])} of the kernel's trace with {percent(sizes[first] / total)} of the "
        "parameters"
    )
    dense = max(order, key=lambda path: shares[path] / max(1, sizes[path]))
    if len(order) > 1:
        sentence += f"; {ranked[1]} follows with {percent(shares[ranked[1]])}"
    if dense != first:
        sentence += (
            f". For its size {dense} holds the most: {percent(shares[dense])} with {counted(sizes[dense], 'parameter')}"
        )
    shown = [path for path in order if path in set(ranked[:_MANY])]
    hover = [
        f"{p}<br><b>{percent(shares[p], 2)}</b> of the kernel<br>{percent(sizes[p] / total, 2)} of the parameters "
        f"({sizes[p]:,})"
        for p in shown
    ]
    exact = not of.get("combinations")
    notes = [
        f"Shares of the mean diagonal over {counted(of.get('examples', 0), 'example')} of the export's verification"
        + (
            ", in float64."
            if exact
            else f", estimated by {of['outputs']} outputs and {of['combinations']} random combinations of all."
        ),
        *([f"The {_MANY} largest of {len(order)} are drawn."] if len(order) > len(shown) else []),
    ]
    if manifest["configuration"]["ntk"].get("trace_samples"):
        notes.append("Of the random combinations of outputs that ntk.trace_samples drew.")
    figure = figures.bars(
        shown,
        [shares[p] for p in shown],
        hover,
        title="share",
        beside=[sizes[p] / total for p in shown],
        what=("of the kernel", "of the parameters"),
        percent=True,
    )
    rows = [
        (p, "×".join(map(str, variables.get(p, {}).get("shape", []))) or "scalar", f"{sizes[p]:,}", f"{shares[p]:.6f}")
        for p in order
    ]
    return Section(
        "layers",
        title,
        f"{sentence}.",
        [("share of each variable", figure)],
        notes=notes,
        tables=[
            Table("Variables, in the model's order", ("variable", "shape", "parameters", "share of the kernel"), rows)
        ],
    )


def about_kept(manifest: Mapping[str, Any]) -> str:
    """What was done with the kernel's kept output axes."""
    kept = manifest["kernel"]["shape"][2:]
    if not kept:
        return ""
    ntk, rank = manifest["configuration"]["ntk"], len(manifest["output"]["shape"])
    diagonal = {axis % rank for axis in ntk["diagonal_axes"]}
    trace = {axis % rank for axis in ntk["trace_axes"]}
    pairs = [axis for axis in range(1, rank) if axis not in trace | diagonal]
    parts = []
    if pairs:
        parts.append(f"of output axes kept in pairs ({listed([str(a) for a in pairs])}) the mean of equal positions")
    if diagonal - trace:
        parts.append(f"of those kept once ({listed([str(a) for a in sorted(diagonal - trace)])}) the mean")
    return f"This export keeps output axes; here the kernel is one number for a pair: {' and '.join(parts)}."
