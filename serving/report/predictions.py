"""Sections about predictions: whether they are right and as sure as they say; and what the answers record."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serving.answers import quality
from serving.answers.targets import task_of_classes
from serving.report import figures
from serving.report.answers import Answers
from serving.report.section import Section, Table, counted, number, percent
from serving.report.targets import Targets

_DRAWN = 1000  # marks
_TITLE = "Predictions"
_NORMAL = {"1": math.erf(1 / math.sqrt(2)), "2": math.erf(2 / math.sqrt(2))}


def predictions_section(
    output: np.ndarray | None, targets: Targets | None, answers: Answers | None, names: list[str]
) -> tuple[Section, str | None]:
    """Accuracy and calibration of the network, and of answers if there are; and accuracy for the beginning of the page.

    Args:
      output: of the network; None if the export does not give it.
      targets: of the examples; None without.
      answers: about the same examples.
      names: of the examples.
    """
    if targets is None:
        return _left_out("the data has no y"), None
    if output is not None:
        if output.ndim != 2:
            output = None if answers is not None else output
        if output is not None and output.ndim != 2:
            return _left_out(
                f"the network's output has the shape {tuple(output.shape)}, not one row for each example"
            ), None
    if output is None and answers is None:
        return _left_out("the export has no signature forward, and no --answers are given"), None
    if targets.labels is not None:
        return _of_classes(output, targets.labels, answers)
    return _of_numbers(output, targets.matrix, answers, names)


def _left_out(why: str) -> Section:
    return Section("predictions", _TITLE, f"Left out: {why}.")


def _of_classes(output: np.ndarray | None, labels: np.ndarray, answers: Answers | None) -> tuple[Section, str | None]:
    named: list[tuple[str, quality.Reliability]] = []
    notes = []
    given = {"predict": answers.mean} if answers is not None else {}
    if output is not None:
        task = task_of_classes(output, "auto" if answers is None else answers.recorded.get("network_output", "auto"))
        given["the network"] = task.probabilities(task.logits(output))
    for name, probabilities in given.items():
        classes = max(2, probabilities.shape[1])
        if labels.min() < 0 or labels.max() >= classes:
            notes.append(f"Of {name} left out: y has classes {labels.min()} to {labels.max()}, it has {classes}.")
            continue
        named.append((name, quality.reliability(probabilities, labels)))
    if not named:
        return Section("predictions", _TITLE, notes[0]), None
    told = [
        f" is right on {percent(one.accuracy)} of {len(labels):,} examples at a mean confidence of "
        f"{percent(one.confidence)}, with a calibration error of {percent(one.error)}"
        for _, one in named
    ]
    same = len(told) == 2 and told[0] == told[1]
    parts = [f"{name}{text}" for (name, _), text in zip(named, told, strict=True)]
    sentence = f"{parts[0]}, and so is {named[1][0]}" if same else "; ".join(parts)
    first = named[0][1]
    gap = first.confidence - first.accuracy
    if len(named) == 1 and abs(gap) > 0.01:
        sentence += f": it is too {'sure' if gap > 0 else 'cautious'}"
    notes += [
        f"Expected calibration error: the mean |accuracy - confidence| over {quality.BINS} bins of confidence, "
        "weighed by their examples. A mark's area goes with them; on the dotted line confidence is right.",
        "It is of these examples: on those that a network was trained on it looks better than it is.",
    ]
    rows = [
        (name, f"{low:.3f} to {high:.3f}", f"{count}", f"{confidence:.5f}", f"{accuracy:.5f}")
        for name, one in named
        for (low, high), count, confidence, accuracy in zip(
            one.edges, one.counts, one.confidences, one.accuracies, strict=True
        )
    ]
    summary = [
        (name, f"{one.accuracy:.5f}", f"{one.confidence:.5f}", f"{one.error:.5f}", f"{one.nll:.5f}")
        for name, one in named
    ]
    section = Section(
        "predictions",
        _TITLE,
        f"{sentence[0].upper()}{sentence[1:]}.",
        [("reliability", figures.reliabilities(named))],
        notes=notes,
        tables=[
            Table(
                "Accuracy and calibration", ("of", "accuracy", "confidence", "calibration error", "log loss"), summary
            ),
            Table("Bins", ("of", "confidence", "examples", "mean confidence", "accuracy"), rows),
        ],
    )
    return section, percent(first.accuracy)


def _of_numbers(
    output: np.ndarray | None, targets: np.ndarray, answers: Answers | None, names: list[str]
) -> tuple[Section, str | None]:
    rows: list[tuple[str, str]] = []
    usable = {
        name: np.asarray(values, np.float64)
        for name, values in (("predict", answers.mean if answers is not None else None), ("the network", output))
        if values is not None and values.shape == targets.shape
    }
    if not usable:
        shapes = [v.shape[1] for v in (output, answers.mean if answers is not None else None) if v is not None]
        return _left_out(f"y has {targets.shape[1]} numbers for an example, the outputs {shapes[0]}"), None
    spread = float(np.sqrt(np.mean((targets - targets.mean(0)) ** 2)))
    parts = []
    for name, values in usable.items():
        error = quality.of_numbers(values, targets)["rmse"]
        rows.append((f"root mean square error of {name}", number(error, 6)))
        parts.append(f"{name} is off by {number(error, 3)}")
    rows.append(("standard deviation of y", number(spread, 6)))
    sentence = f"{'; '.join(parts)} (root mean square; y itself varies by {number(spread, 3)})"
    mean = next(iter(usable.values()))
    deviation = np.zeros(len(mean))
    if answers is not None and "predict" in usable:
        variance = np.maximum(answers.variance.astype(np.float64), 0)
        deviation = np.sqrt(variance)
        within = quality.of_numbers(mean, targets, variance)["coverage"]
        sentence += "; within 1 and 2 standard deviations are " + " and ".join(
            f"{percent(within[k])} (normal: {percent(_NORMAL[k])})" for k in _NORMAL
        )
        rows += [(f"within {k} standard deviations", f"{within[k]:.5f}, normal {_NORMAL[k]:.5f}") for k in _NORMAL]
    some = np.arange(len(mean))
    notes = ["It is of these examples: on those that a network was trained on it looks better than it is."]
    if mean.size > _DRAWN:
        some = np.sort(np.random.default_rng(0).choice(len(mean), max(1, _DRAWN // mean.shape[1]), replace=False))
        notes.append(f"{counted(len(some), 'example')} of {len(mean):,} are drawn.")
    width = mean.shape[1]
    figure = figures.predicted(
        targets[some].ravel(),
        mean[some].ravel(),
        np.repeat(deviation[some], width),
        np.repeat(np.array(names)[some], width).tolist(),
    )
    section = Section(
        "predictions",
        _TITLE,
        f"{sentence[0].upper()}{sentence[1:]}.",
        [("predicted by target", figure)],
        notes=notes,
        tables=[Table("Errors and coverage", ("quantity", "value"), rows)],
    )
    return section, None


def fit_section(answers: Answers) -> Section:
    """What the answers' manifest records of the fit."""
    recorded = answers.recorded
    rows = [(key.replace("_", " "), text) for key, value in recorded.items() if (text := _told(value))]
    curve = recorded.get("ridge_curve") or {}
    ridges, losses = (np.asarray(curve.get(name, []), np.float64) for name in ("ridge", "loss"))
    usable = len(ridges) == len(losses) > 1 and bool(np.all(ridges > 0)) and bool(np.all(np.isfinite(losses)))
    ridge = recorded.get("ridge")
    sentence = f"The answers keep {counted(int(recorded.get('kept') or 0), 'reference')}"
    if isinstance(ridge, (int, float)):
        sentence += f" and use a ridge of {number(float(ridge), 3)}"
    if usable:
        low, high = (number(float(value), 3) for value in (losses.min(), losses.max()))
        sentence += f"; over the ridges that were tried leave-one-out loss goes from {low} to {high}"
        if ridge == ridges.min():
            sentence += ", with the least at the smallest: these references need none"
    figure = figures.ridge_curve(ridges.tolist(), losses.tolist(), float(ridge or 0)) if usable else None
    return Section(
        "fit",
        "Fit of the answers",
        f"{sentence}.",
        [("leave-one-out loss by ridge", figure)] if figure else [],
        tables=[Table("Recorded by ntk-fit", ("quantity", "value"), rows)],
    )


def _told(value: Any) -> str:
    """Numbers and texts, and flat groups of these; "" for lists."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "; ".join(f"{key.replace('_', ' ')} {text}" for key, inner in value.items() if (text := _told(inner)))
    return value if isinstance(value, str) else ""
