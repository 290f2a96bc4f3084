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


def page_of(export: Path, data: Path, answers: Path | None = None, examples: int = 1000) -> Page:
    """A page, silently."""
    return make_page(Inputs(str(export), str(data), str(answers) if answers else None, examples), lambda *_: None)
