"""Sections that show examples: those nearest to some, those that predictions rest on, and the most novel."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from serving.dataset.data import Data, Rows
from serving.report import figures, numbers
from serving.report.answers import Answers
from serving.report.pictures import Pictures
from serving.report.sample import Sample, read_rows, take
from serving.report.section import Section, Table, counted, number, percent
from serving.report.targets import Targets, targets_of

SHOWN = 8  # examples whose neighbours are shown
ODD = 3  # of these, such whose nearest is of another class
NEIGHBOURS = 8
_NEAR = 0.1  # largest difference of a similarity from the kernel's cosine: features of 4,096 numbers are within 0.06
_NOVEL = 8
_WEIGHT = "+.2g"  # how weights are written
_TEXTS = 4  # neighbours of an example, where they are no images

Cosines = Callable[[Rows], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shown:
    """Examples, and how to show them.

    Attributes:
      sample: the page's examples.
      targets: of these, if there are any.
      pictures: of examples of the model.
      references: where examples of answers are looked for.
    """

    sample: Sample
    targets: Targets | None
    pictures: Pictures
    references: Data

    def card(self, place: int, more: str = "", odd: bool = False) -> str:
        """One of the sample."""
        label = label_of(self.targets, place)
        return card(self.pictures.show(self.sample.examples, place), label, more, self.sample.names[place], odd)


def label_of(targets: Targets | None, place: int) -> str:
    """What people call an example's target; "" without."""
    if targets is None:
        return ""
    if targets.labels is not None:
        return str(targets.labels[place])
    return "y = " + ", ".join(f"{value:.3g}" for value in targets.matrix[place, :3])


def card(content: str, label: str, more: str, name: str, odd: bool = False, sign: str = "≠") -> str:
    """An example: what it looks like, its target, and a number; `odd` ones stand out, with a sign."""
    strong = f"<b>{html.escape(label)}</b>" if label else ""
    mark = f'<span class="sign" title="another class">{sign}</span> ' if odd and sign else ""
    caption = " ".join(filter(None, [mark + strong, html.escape(more)]))
    odd_class = " odd" if odd else ""
    return (
        f'<figure class="card{odd_class}" title="{html.escape(name, quote=True)}">{content}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def queries(sample: Sample, targets: Targets | None, odd: np.ndarray, seed: int = 1) -> np.ndarray:
    """Which examples to show: of different classes as far as there are, and some that are odd.

    Args:
      sample: the page's examples.
      targets: theirs.
      odd: places of odd ones, the oddest first.
      seed: of the draw.
    """
    rng, n = np.random.default_rng(seed), len(sample)
    odd = odd[:ODD]
    order = [int(k) for k in rng.permutation(n) if k not in set(odd.tolist())]
    chosen: list[int] = []
    if targets is not None and (labels := targets.labels) is not None:
        seen = set(labels[odd].tolist())
        for k in order:
            if labels[k] not in seen and len(chosen) + len(odd) < SHOWN:
                seen.add(labels[k])
                chosen.append(k)
        chosen.sort(key=labels.__getitem__)
    rest = [k for k in order if k not in set(chosen)]
    chosen += rest[: max(0, SHOWN - len(chosen) - len(odd))]
    return np.array([*chosen, *odd.tolist()], np.int64)


def nearest_section(shown: Shown, cosines: np.ndarray) -> tuple[Section, np.ndarray, str | None]:
    """Neighbours by the kernel's cosine within the sample; the examples that were shown; and how many nearest agree."""
    sample, targets = shown.sample, shown.targets
    title = "Nearest examples"
    if len(sample) < 2:
        return Section("nearest", title, "Left out: it takes two examples."), np.zeros(1, np.int64), None
    near = numbers.neighbours(cosines, NEIGHBOURS)
    first, labels = near[:, 0], targets.labels if targets is not None else None
    similar = np.take_along_axis(cosines, near, 1)
    agree, differ = None, np.zeros(0, np.int64)
    sentence = f"The nearest other example has a cosine of {float(np.median(similar[:, 0])):.3f} (median)."
    if labels is not None and targets is not None and len(targets.names) > 1:
        same = labels[first] == labels
        agree = percent(float(same.mean()))
        (differ,) = np.nonzero(~same)
        differ = differ[np.argsort(-similar[differ, 0])]
        sentence = (
            f"For {agree} of the examples the nearest other one is of the same class; its cosine is "
            f"{float(np.median(similar[:, 0])):.3f} (median)."
        )
    chosen = queries(sample, targets, differ)

    def odd(k: int, other: int) -> bool:
        return labels is not None and labels[k] != labels[other]

    rows = [
        (
            shown.card(k),
            [shown.card(int(j), f"{c:.3f}", odd(k, int(j))) for j, c in zip(near[k], similar[k], strict=True)],
        )
        for k in chosen.tolist()
    ]
    table = [
        (sample.names[k], label_of(targets, k), sample.names[j], label_of(targets, int(j)), f"{c:.5f}")
        for k in chosen.tolist()
        for j, c in zip(near[k], similar[k], strict=True)
    ]
    notes = [
        "On the left an example, then those with the largest cosine of the kernel, within the examples of this page."
    ]
    if len(differ):
        notes.append(
            f"The last {len(differ[:ODD])} have a nearest of another class, with the largest cosines of such: they are "
            "confusable, or have a wrong label."
        )
    notes += [shown.pictures.note] if shown.pictures.note else []
    head = ("example", "target", "nearest", "its target", "cosine")
    section = Section(
        "nearest",
        title,
        sentence,
        body=gallery(rows, shown.pictures.images),
        notes=notes,
        tables=[Table("Nearest examples", head, table)],
    )
    return section, chosen, agree


def gallery(rows: Sequence[tuple[str, Sequence[str]]], images: bool) -> str:
    """An example and others, a row each; texts and numbers below each other, and fewer."""
    if not images:
        rows = [(query, others[:_TEXTS]) for query, others in rows]
    lines = [f'<div class="query">{query}</div><div class="others">{"".join(others)}</div>' for query, others in rows]
    return f'<div class="{_kind(images)}">{"".join(f"<div class=line>{line}</div>" for line in lines)}</div>'


def _kind(images: bool) -> str:
    return "gallery" if images else "gallery texts"


@dataclasses.dataclass(frozen=True)
class References:
    """Reference examples of the answers, as far as the data holds them.

    Attributes:
      places: of an id in `examples`; empty if the data is of other examples.
      examples: that were found.
      targets: theirs.
      note: what is known of the ids.
    """

    places: dict[object, int]
    examples: Rows | None
    targets: Targets | None
    note: str


def find_references(
    shown: Shown, asked: Rows, ids: np.ndarray, similarities: np.ndarray, more_ids: np.ndarray, cosines_of: Cosines
) -> References:
    """The examples of these ids in the data, if similarities are the kernel's cosines with them.

    Ids may be numbers of rows, and those of other data mean other examples: so they are looked at.

    Args:
      shown: the page's examples.
      asked: those that were asked about, m of them.
      ids, similarities: (m, neighbors) of `nearest`.
      more_ids: others to be found.
      cosines_of: the kernel's cosines of examples with each other.
    """
    data, m = shown.references, len(ids)
    name = Path(data.name).name
    rows_by_id = {key: row for row, key in enumerate(data.ids().tolist())}
    wanted = dict.fromkeys([*ids.ravel().tolist(), *more_ids.ravel().tolist()])
    rows = {key: rows_by_id[key] for key in wanted if key in rows_by_id}
    other = References({}, None, None, f"The references are other examples than {name} has, so their ids are shown.")
    if not rows:
        return other
    order = np.array(sorted(rows.values()), np.int64)
    found = read_rows(data, order)
    places = {key: int(np.searchsorted(order, row)) for key, row in rows.items()}
    inputs = {name: np.concatenate([asked.inputs[name], array]) for name, array in found.inputs.items()}
    table = cosines_of(Rows(inputs, None, None))[:m, m:]
    pairs = [
        (k, places[key], s)
        for k in range(m)
        for key, s in zip(ids[k].tolist(), similarities[k], strict=True)
        if key in places
    ]
    if not pairs:
        return other
    own = float(np.median([abs(table[k, p] - s) for k, p, s in pairs]))
    any_other = float(np.median([np.median(np.abs(table[k] - s)) for k, _, s in pairs]))
    if own > _NEAR or (own > 1e-3 and any_other < 2 * own):
        return other
    targets = None
    if found.y is not None and shown.targets is not None:
        targets = targets_of(found.y, numbers=not shown.targets.is_classes)
    near = f"within {max(own, 1e-6):.0e} (median)"
    note = f"The references are examples of {name}: similarities are {near} of the kernel's cosines."
    return References(places, found, targets, note)


def answers_sections(shown: Shown, answers: Answers, chosen: np.ndarray, cosines_of: Cosines) -> list[Section]:
    """The answers' neighbours and supporting examples of those that were chosen, and the most novel examples."""
    sample = shown.sample
    asked = take(sample.examples, chosen)
    near_ids, similarities = answers.nearest(asked)
    support_ids, weights = answers.support(asked)
    found = find_references(shown, asked, near_ids, similarities, support_ids, cosines_of)

    def of_reference(key: object, value: float, form: str, k: int) -> str:
        text, against = f"{value:{form}}", value < 0
        if key not in found.places or found.examples is None:
            return card(f'<span class="values">{html.escape(str(key))}</span>', "", text, str(key), against, "")
        place = found.places[key]
        content, label = shown.pictures.show(found.examples, place), label_of(found.targets, place)
        if form == _WEIGHT:
            return card(content, label, text, str(key), against, "")
        labels = shown.targets.labels if shown.targets is not None else None
        return card(content, label, text, str(key), labels is not None and label not in ("", str(labels[k])))

    def section(
        key: str, title: str, sentence: str, ids: np.ndarray, values: np.ndarray, form: str, note: str
    ) -> Section:
        rows, table = [], []
        for k, own, of in zip(chosen.tolist(), ids.tolist(), values.tolist(), strict=True):
            pairs = list(zip(own, of, strict=True))
            rows.append((shown.card(k), [of_reference(i, v, form, k) for i, v in pairs[:NEIGHBOURS]]))
            table += [(sample.names[k], label_of(shown.targets, k), str(i), f"{v:.6g}") for i, v in pairs]
        head = ("example", "target", "reference", "similarity" if key == "references" else "weight")
        return Section(
            key,
            title,
            sentence,
            body=gallery(rows, shown.pictures.images),
            notes=[note, found.note],
            tables=[Table(title, head, table)],
        )

    references = answers.recorded.get("references")
    among = f" among {references:,} references" if isinstance(references, int) else ""
    best = float(np.median(similarities[:, 0])) if similarities.size else float("nan")
    favour = float(np.mean(weights > 0)) if weights.size else 0.0
    heaviest = float(np.median(np.abs(weights[:, 0]))) if weights.size else float("nan")
    return [
        section(
            "references",
            "Nearest references",
            f"The most similar{among} has a similarity of {best:.3f} (median of those shown).",
            near_ids,
            similarities,
            ".3f",
            "By the answers' signature nearest, of the same examples as above. At 1.000 it is that example itself.",
        ),
        section(
            "support",
            "Supporting examples",
            f"Of the references that a prediction rests on most {percent(favour, 0)} speak for it and the others, with "
            f"weights below 0, against it; the largest weight is {number(heaviest, 3)} (median of those shown).",
            support_ids,
            weights,
            _WEIGHT,
            "By the answers' signature support: what each reference adds to the predicted output, k(x, xᵢ) αᵢ. Marked "
            "are those that speak against it.",
        ),
        novelty_section(shown, answers),
    ]


def novelty_section(shown: Shown, answers: Answers) -> Section:
    """How novel the examples are to the answers, and which are the most."""
    novelty = answers.novelty
    order = np.argsort(-novelty, kind="stable")[:_NOVEL]
    half = int(np.sum(novelty > 0.5))
    sentence = (
        f"The median novelty is {float(np.median(novelty)):.3f} (0: seen, 1: nothing like it); "
        f"{counted(half, 'example')} of {len(novelty):,} {'is' if half == 1 else 'are'} above 0.5."
    )
    cards = "".join(shown.card(int(k), f"{novelty[k]:.3f}") for k in order)
    names = shown.sample.names
    rows = [
        (names[k], label_of(shown.targets, int(k)), f"{novelty[k]:.6f}", f"{answers.variance[k]:.6g}") for k in order
    ]
    return Section(
        "novelty",
        "Novelty",
        sentence,
        [("novelty of the examples", figures.histogram(novelty, "novelty", (0.0, _upper(novelty))))],
        body=f'<div class="{_kind(shown.pictures.images)}"><div class="others">{cards}</div></div>',
        notes=[
            "Below the histogram the most novel examples. A wrong label is not novel: novelty knows of inputs only."
        ],
        tables=[Table("Most novel", ("example", "target", "novelty", "variance"), rows)],
    )


def _upper(novelty: np.ndarray) -> float:
    """The end of an axis: 1, or where all are small a tenth, a fiftieth, ... that is above."""
    largest = float(novelty.max())
    return next((end for end in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if largest < end), 1.0)
