"""Figures as Plotly takes them.

Colours are names, "@ink", which the page replaces by those of its theme: figures are drawn anew when that changes.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.answers.quality import Reliability

_SQUARE = {"scaleanchor": "x", "constrain": "domain"}
_LABELS = 24  # of classes on an axis, at most
_POINTS = 400  # of a curve


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
      data, layout: as `Plotly.newPlot` takes them.
      height: in pixels; 0: about as high as it is wide.
      small: whether it needs less than the page's width; of such that are as high as wide.
    """

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 320
    small: bool = False


def typed(array: np.ndarray) -> dict[str, Any]:
    """float32 in base64, which Plotly reads as an array."""
    array = np.ascontiguousarray(array, "<f4")
    shape = {"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {}
    return {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode(), **shape}


def heat_map(
    cosines: np.ndarray, kernel: np.ndarray, labels: Sequence[str], edges: Sequence[float], ticks: dict[float, str]
) -> Figure:
    """A square of cosines, with the kernel to be read by hovering.

    Args:
      cosines, kernel: (m, m).
      labels: of rows and columns, all different.
      edges: where lines divide it.
      ticks: what is written beside it, and where.
    """
    diverging = float(cosines.min()) < -0.05
    colours: dict[str, Any] = {"colorscale": "@diverging" if diverging else "@sequential"}
    # From what all have in common up, or differences would be shades of one colour.
    low = float(np.quantile(cosines, 0.005))
    bound = min(1.0, max(0.1, float(np.quantile(np.abs(cosines), 0.98))))
    colours |= {"zmin": -bound, "zmax": bound} if diverging else {"zmin": min(max(0.0, low), 0.9), "zmax": 1}
    axis = {
        "type": "category",
        "tickmode": "array",
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "tickangle": 0,
        "range": [-0.5, len(labels) - 0.5],
    }
    line = {"type": "line", "line": {"color": "@paper", "width": 1}}
    last = len(labels) - 0.5
    shapes = [line | {"x0": e, "x1": e, "y0": -0.5, "y1": last} for e in edges]
    shapes += [line | {"y0": e, "y1": e, "x0": -0.5, "x1": last} for e in edges]
    return Figure(
        [
            {
                "type": "heatmap",
                "x": list(labels),
                "y": list(labels),
                "z": typed(cosines),
                "customdata": typed(kernel),
                "hovertemplate": "%{y}<br>%{x}<br>cosine <b>%{z:.3f}</b><br>kernel %{customdata:.4g}<extra></extra>",
                "colorbar": _bar("cosine"),
                **colours,
            }
        ],
        {
            "xaxis": {**axis, "side": "top"},
            "yaxis": {**axis, "range": [last, -0.5], **_SQUARE},
            "shapes": shapes if len(edges) <= _LABELS else [],
        },
        height=0,
    )


def class_map(means: np.ndarray, names: Sequence[str]) -> Figure:
    """Mean cosines between classes."""
    labels = [f"class {name}" for name in names]
    shown = [[None if np.isnan(v) else round(float(v), 4) for v in row] for row in means]
    diverging = float(np.nanmin(means, initial=0.0)) < -0.05
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": shown,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{y} and %{x}<br>mean cosine <b>%{z:.3f}</b><extra></extra>",
        "hoverongaps": False,
        "colorscale": "@diverging" if diverging else "@sequential",
        "colorbar": _bar("cosine"),
    } | ({"zmid": 0} if diverging else {})
    if len(names) <= 12:
        trace["texttemplate"] = "%{z:.2f}"
    ticks = dict(zip(range(len(names)), names, strict=True))
    axis = {"type": "category", "showgrid": False, "zeroline": False, "ticks": "", "tickangle": 0}
    if len(names) <= _LABELS:
        axis |= {"tickmode": "array", "tickvals": list(ticks), "ticktext": list(ticks.values())}
    return Figure(
        [trace], {"xaxis": {**axis, "side": "top"}, "yaxis": {**axis, "autorange": "reversed", **_SQUARE}}, 0, True
    )


def spectrum(values: np.ndarray, rounding: float) -> Figure:
    """Eigenvalues, descending, as parts of their sum; log-log, those that are above rounding."""
    total = float(values.sum())
    ranks = _spread(int(np.count_nonzero(values > rounding)))
    parts, held = values / total, np.cumsum(values) / total
    return Figure(
        [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": (ranks + 1).tolist(),
                "y": typed(parts[ranks]),
                "customdata": typed(np.stack([held[ranks], values[ranks]], 1)),
                "marker": {"size": 5, "color": "@accent"},
                "line": {"width": 1.5, "color": "@accent"},
                "hovertemplate": "eigenvalue %{x}: <b>%{customdata[1]:.4g}</b><br>%{y:.3%} of the trace"
                "<br>the first %{x} hold %{customdata[0]:.2%}<extra></extra>",
            }
        ],
        {
            "xaxis": {"type": "log", "title": {"text": "rank"}, "dtick": 1},
            "yaxis": {"type": "log", "title": {"text": "share of the trace"}, "exponentformat": "power", "dtick": 1},
        },
    )


def effective_dimension(ridges: np.ndarray, dimensions: np.ndarray, marked: float, at_mark: float) -> Figure:
    """tr K (K + λ)⁻¹ by λ, relative to the trace, with one marked."""
    return Figure(
        [
            _curve(ridges, dimensions, "λ = %{x:.1e} of the trace<br>dimension <b>%{y:.1f}</b><extra></extra>"),
            {
                "type": "scatter",
                "mode": "markers",
                "x": [marked],
                "y": [at_mark],
                "marker": {"size": 9, "color": "@second"},
                "hovertemplate": "λ = %{x:.2e} of the trace<br>dimension <b>%{y:.1f}</b><extra></extra>",
            },
        ],
        {
            "xaxis": {
                "type": "log",
                "title": {"text": "λ / trace"},
                "exponentformat": "power",
                "dtick": 1,
                "autorange": "reversed",
            },
            "yaxis": {"title": {"text": "effective dimension"}, "rangemode": "tozero"},
        },
    )


def bars(
    names: Sequence[str],
    values: Sequence[float],
    hover: Sequence[str],
    *,
    title: str,
    beside: Sequence[float] | None = None,
    what: tuple[str, str] = ("", ""),
    line: tuple[float, str] | None = None,
    percent: bool = False,
) -> Figure:
    """Horizontal bars, the first on top.

    Args:
      names, values, hover: of each.
      title: of the axis.
      beside: other values, as marks.
      what: names of values and of those beside, for the legend.
      line: a value that is marked in all, and its name.
      percent: whether values are parts of 1.
    """
    labels = _short(names)
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": labels,
            "x": [float(v) for v in values],
            "customdata": list(hover),
            "marker": {"color": "@bar"},
            "name": what[0],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
    ]
    if beside is not None:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "y": labels,
                "x": [float(v) for v in beside],
                "customdata": list(hover),
                "marker": {"color": "@second", "size": 9, "symbol": "line-ns-open", "line": {"width": 2.5}},
                "name": what[1],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    layout: dict[str, Any] = {
        "bargap": 0.35,
        "showlegend": beside is not None,
        "xaxis": {"title": {"text": title}, "rangemode": "tozero", **({"tickformat": ".0%"} if percent else {})},
        "yaxis": {"autorange": "reversed", "showgrid": False, "ticks": "", "type": "category", "automargin": True},
    }
    if line is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "x0": line[0],
                "x1": line[0],
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "@second", "width": 1.5, "dash": "dot"},
            }
        ]
        layout["annotations"] = [
            {
                "x": line[0],
                "yref": "paper",
                "y": 1,
                "yanchor": "bottom",
                "xanchor": "left",
                "showarrow": False,
                "text": line[1],
                "font": {"color": "@second", "size": 12},
            }
        ]
    return Figure(data, layout, height=min(900, max(200, 110 + 26 * len(names))))


def reliabilities(named: Sequence[tuple[str, Reliability]]) -> Figure:
    """Accuracy by confidence, with the size of a mark that of its bin."""
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": "@muted", "dash": "dot", "width": 1},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    looks = (("@accent", "circle", "solid"), ("@second", "circle-open", "dot"))  # both seen where they are the same
    for (name, one), (colour, symbol, dash) in zip(named, looks, strict=False):
        size = 6 + 18 * np.sqrt(one.counts / one.counts.sum())
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": one.confidences.tolist(),
                "y": one.accuracies.tolist(),
                "customdata": [
                    [int(count), f"{low:.2f} to {high:.2f}"]
                    for count, (low, high) in zip(one.counts, one.edges, strict=True)
                ],
                "marker": {"size": size.tolist(), "color": colour, "symbol": symbol, "line": {"width": 1.5}},
                "line": {"color": colour, "width": 1.5, "dash": dash},
                "hovertemplate": f"{name}, confidence %{{customdata[1]}}<br>%{{customdata[0]}} examples: mean "
                "confidence %{x:.3f}<br>right: <b>%{y:.1%}</b><extra></extra>",
            }
        )
    return Figure(
        data,
        {
            "xaxis": {"title": {"text": "confidence"}, "range": [0, 1.03]},
            "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1.05], "tickformat": ".0%"},
            "showlegend": True,
        },
        height=0,
        small=True,
    )


def predicted(targets: np.ndarray, means: np.ndarray, deviations: np.ndarray, names: Sequence[str]) -> Figure:
    """Predictions of numbers by their targets, with a standard deviation."""
    low, high = float(min(targets.min(), means.min())), float(max(targets.max(), means.max()))
    return Figure(
        [
            {
                "type": "scatter",
                "mode": "lines",
                "x": [low, high],
                "y": [low, high],
                "line": {"color": "@muted", "dash": "dot", "width": 1},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "x": typed(targets),
                "y": typed(means),
                "error_y": {"type": "data", "array": typed(deviations), "thickness": 0.7, "width": 0},
                "marker": {"size": 5, "color": "@accent", "opacity": 0.7},
                "customdata": list(names),
                "hovertemplate": "%{customdata}<br>target %{x:.4g}<br>predicted <b>%{y:.4g}</b> ± "
                "%{error_y.array:.2g}<extra></extra>",
            },
        ],
        {"xaxis": {"title": {"text": "target"}}, "yaxis": {"title": {"text": "predicted"}}},
        height=380,
    )


def histogram(values: np.ndarray, title: str, bounds: tuple[float, float], bins: int = 30) -> Figure:
    """How many examples have which value."""
    counts, edges = np.histogram(np.clip(values, *bounds), bins, bounds)
    hover = [f"{a:.3g} to {b:.3g}" for a, b in itertools.pairwise(edges)]
    return Figure(
        [
            {
                "type": "bar",
                "x": ((edges[1:] + edges[:-1]) / 2).tolist(),
                "y": counts.tolist(),
                "customdata": hover,
                "marker": {"color": "@bar"},
                "hovertemplate": f"{title} %{{customdata}}<br><b>%{{y}}</b> examples<extra></extra>",
            }
        ],
        {
            "bargap": 0.06,
            "xaxis": {"title": {"text": title}, "range": list(bounds)},
            "yaxis": {"title": {"text": "examples"}},
        },
        height=260,
    )


def ridge_curve(ridges: Sequence[float], losses: Sequence[float], chosen: float) -> Figure:
    """Leave-one-out loss by ridge."""
    curve = _curve(np.asarray(ridges), np.asarray(losses), "ridge %{x:.2e}<br>loss <b>%{y:.4g}</b><extra></extra>")
    steep = 0 < 10 * min(losses) < max(losses)
    line = {"type": "line", "x0": chosen, "x1": chosen, "yref": "paper", "y0": 0, "y1": 1}
    return Figure(
        [curve],
        {
            "xaxis": {"type": "log", "title": {"text": "ridge"}, "exponentformat": "power", "dtick": 1},
            "yaxis": {"title": {"text": "leave-one-out loss"}} | ({"type": "log", "dtick": 1} if steep else {}),
            "shapes": [line | {"line": {"color": "@second", "width": 1.5, "dash": "dot"}}] if chosen > 0 else [],
        },
        height=260,
    )


def _curve(x: np.ndarray, y: np.ndarray, hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [float(v) for v in x],
        "y": [float(v) for v in y],
        "line": {"width": 2, "color": "@accent"},
        "hovertemplate": hover,
    }


def _bar(title: str) -> dict[str, Any]:
    return {"title": {"text": f"{title}<br>\u200b", "side": "top"}, "thickness": 10, "outlinewidth": 0, "len": 0.9}


def _spread(count: int) -> np.ndarray:
    """Some of the first `count` places, all at first and then equally far on a logarithmic scale."""
    return np.unique(np.geomspace(1, max(1, count), _POINTS).round().astype(int)) - 1


def _short(names: Sequence[str], most: int = 28) -> list[str]:
    """Names of which the beginnings are left out where they are long, all different still."""
    short = [name if len(name) <= most else f"…{name[1 - most :]}" for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)
