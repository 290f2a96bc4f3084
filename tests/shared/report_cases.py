"""Pages of reports, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from serving.report.page import Page
from serving.report.report import Inputs, make_page


def save(path: Path, **arrays: Any) -> Path:
    """Writes a data set."""
    np.savez(path, **arrays)
    return path


def page_of(
    export: Path, data: Path, answers: Path | None = None, examples: int = 1000, references: Path | None = None
) -> Page:
    """A page, silently."""
    others = [None if path is None else str(path) for path in (answers, references)]
    return make_page(Inputs(str(export), str(data), others[0], examples, others[1]), lambda *_: None)
