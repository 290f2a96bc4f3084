"""From an export, a data set and answers to a page."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.dataset.data import Data, Rows
from serving.report import numbers
from serving.report.answers import Answers, ask_answers, find_answers
from serving.report.asking import Asked, find_kernel
from serving.report.costs import Measured, export_section
from serving.report.gallery import Shown, answers_sections, nearest_section
from serving.report.page import Page
from serving.report.pictures import Pictures
from serving.report.predictions import fit_section, predictions_section
from serving.report.sample import Sample, draw
from serving.report.section import Section, counted
from serving.report.sections import (
    about_kept,
    alignment_section,
    classes_section,
    kernel_section,
    layers_section,
    spectrum_section,
)
from serving.report.targets import Targets, targets_of

Say = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a page is about, as users name it.

    Attributes:
      export: base directory or version.
      data: DATA.
      answers: base directory or version; None without.
      examples: at most.
      references: the data that the answers were fitted to, to show examples of it; None for `data`.
    """

    export: str
    data: str
    answers: str | None
    examples: int
    references: str | None = None


def make_page(inputs: Inputs, say: Say) -> Page:
    """Computes all that the page shows.

    Args:
      inputs: what it is about.
      say: told what is done, in a word and in more.

    Raises:
      DatasetError: it cannot be done.
    """
    export = find_kernel(inputs.export)
    say("export", f"{export.path}: {export.manifest['model']}")
    if inputs.answers:
        find_answers(inputs.answers)  # before anything takes long
    data = Data(inputs.data, export.inputs)
    references = Data(inputs.references, export.inputs) if inputs.references else data
    sample = draw(data, inputs.examples)
    of = f" of {sample.total:,}" if len(sample) < sample.total else ""
    say("data", f"{data.name}: {len(sample):,}{of} examples{' with y' if data.has_y else ''}")
    asked = Asked(export)
    start = time.monotonic()
    kernel = asked.kernel(sample.examples)
    seconds = time.monotonic() - start
    say("kernel", f"{len(sample):,} × {len(sample):,} in {seconds:.1f} s")
    output = asked.forward(sample.examples)
    answers = ask_answers(inputs.answers, sample.examples) if inputs.answers else None
    if answers is not None:
        say("answers", f"{answers.path}: {answers.recorded.get('method')}")
    targets = None
    if sample.examples.y is not None:
        numbers_asked = answers is not None and answers.recorded.get("task") == "regression"
        targets = targets_of(sample.examples.y, numbers=numbers_asked)
    start = time.monotonic()
    measured = Measured(len(sample), asked.load_seconds, seconds)

    def cosines_of(examples: Rows) -> np.ndarray:
        return numbers.cosine(asked.kernel(examples))

    shown = Shown(sample, targets, Pictures(export.inputs, sample.examples), references)
    sections, tiles = _sections(kernel, shown, output, answers, about_kept(export.manifest), cosines_of)
    layers = layers_section(export.manifest)
    place = next(k for k, section in enumerate(sections) if section.key == "alignment") + 1
    sections[place:place] = [layers]
    sections.append(export_section(export, measured))
    say("numbers", f"{time.monotonic() - start:.1f} s")
    drawn = f" of {sample.total:,}, drawn at random," if of else ""
    about = [
        f"{counted(len(sample), 'example')}{drawn} of {Path(data.name).name}",
        f"Export {export.path.parent.name}, version {export.path.name}, written {export.manifest['created'][:10]}",
    ]
    if answers is not None:
        about.append(f"Answers {answers.path.parent.name}, version {answers.path.name}")
    return Page(
        f"Neural tangent kernel of {export.manifest['model']}", about, tiles, sections, _notices(sample, targets)
    )


def _notices(sample: Sample, targets: Targets | None) -> list[str]:
    notices = []
    if targets is None:
        notices.append(
            "The data has no y. Left out: the order by class, classes, alignment, and accuracy and calibration."
        )
    if len(sample) == 1:
        notices.append("The data has one example. Left out: all that takes pairs of examples.")
    return notices


def _sections(
    kernel: np.ndarray,
    shown: Shown,
    output: np.ndarray | None,
    answers: Answers | None,
    kept: str,
    cosines_of: Callable[[Rows], np.ndarray],
) -> tuple[list[Section], list[tuple[str, str, str]]]:
    """All but those of the export itself; and numbers for the beginning of the page."""
    sample, targets = shown.sample, shown.targets
    cosines = numbers.cosine(kernel)
    sections = [kernel_section(kernel, cosines, targets, sample.names, kept)]
    classes = classes_section(cosines, targets)
    sections += [classes] if classes is not None else []
    spectrum, dimension = spectrum_section(kernel)
    alignment, aligned = alignment_section(kernel, targets)
    nearest, chosen, agree = nearest_section(shown, cosines)
    predictions, accuracy = predictions_section(output, targets, answers, sample.names)
    sections += [spectrum, alignment, nearest]
    if answers is not None:
        sections += answers_sections(shown, answers, chosen, cosines_of)
    sections.append(predictions)
    if answers is not None:
        sections.append(fit_section(answers))
    tiles = [(f"{len(sample):,}", "examples", "kernel"), (dimension, "effective dimension", "spectrum")]
    tiles += [(aligned, "target alignment", "alignment")] if aligned else []
    tiles += [(agree, "nearest of the same class", "nearest")] if agree else []
    tiles += [(accuracy, "accuracy", "predictions")] if accuracy else []
    return sections, tiles
