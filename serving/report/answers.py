"""A SavedModel of answers: predictions, neighbours and supporting examples of a reference set."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from serving.dataset.data import Rows
from serving.dataset.export import digest_of
from serving.dataset.model import Model
from serving.report.asking import by_rows
from serving.report.errors import ReportError
from serving.shared.exports import MANIFEST, version_directories

_SIGNATURES = {"predict": ("mean", "variance", "novelty"), "nearest": ("id", "similarity"), "support": ("id", "weight")}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What answers say of n examples.

    Attributes:
      path: of the version.
      recorded: the manifest's "answers".
      mean, variance, novelty: (n, outputs), (n,), (n,) of `predict`.
    """

    path: Path
    recorded: dict[str, Any]
    mean: np.ndarray
    variance: np.ndarray
    novelty: np.ndarray
    model: Model

    @property
    def is_classification(self) -> bool:
        """Whether `mean` are probabilities of classes."""
        return self.recorded.get("task") == "classification"

    def nearest(self, examples: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Ids and similarities, (n, neighbors) each."""
        return self._listed("nearest", "similarity", examples)

    def support(self, examples: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights, (n, neighbors) each."""
        return self._listed("support", "weight", examples)

    def _listed(self, signature: str, value: str, examples: Rows) -> tuple[np.ndarray, np.ndarray]:
        got = by_rows(self.model.call, signature, examples)
        return _texts(got["id"]), got[value]


def ask_answers(path: str, examples: Rows) -> Answers:
    """Loads the version in that directory, or the newest below it, and asks `predict` of the examples.

    Raises:
      ReportError: there is none, or it holds no answers, or is of other inputs.
    """
    version, recorded = find_answers(path)
    model = Model(version, digest_of(version), os.cpu_count() or 1)
    try:
        got = by_rows(model.call, "predict", examples)
        missing = [name for name in _SIGNATURES["predict"] if name not in got]
        if missing:
            raise KeyError(missing[0])
    except KeyError as error:
        raise ReportError(
            f"{version}: expected answers with {error} of 'predict', found none. Fit them again."
        ) from None
    except (TypeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise ReportError(f"{version}: expected answers about the model of --export: {first}") from error
    mean = got["mean"].reshape(len(got["mean"]), -1)
    values = (mean, got["variance"].reshape(-1), got["novelty"].reshape(-1))
    for name, value in zip(_SIGNATURES["predict"], values, strict=True):
        if not np.all(np.isfinite(value)):
            raise ReportError(f"{version}: expected {name} of finite numbers from 'predict', received NaN or infinity.")
    return Answers(version, recorded, *values, model)


def find_answers(path: str) -> tuple[Path, dict[str, Any]]:
    """The version, and what its manifest says of answers."""
    base = Path(path).expanduser().absolute()
    versions = [base] if (base / "saved_model.pb").is_file() else version_directories(base)
    if not versions:
        raise ReportError(f"Expected answers in {str(base)!r}, found none. Give the --output of ntk-fit.")
    version = versions[-1]
    try:
        recorded = json.loads((version / MANIFEST).read_text(encoding="utf-8"))["answers"]
        return version, dict(recorded)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{version}: expected answers, found a SavedModel without them ({type(error).__name__}). Give the --output "
            "of ntk-fit."
        ) from error


def _texts(ids: np.ndarray) -> np.ndarray:
    """Integers as they are, texts as str."""
    if ids.dtype.kind in "iu":
        return ids.astype(np.int64)
    texts = [i.decode(errors="replace") if isinstance(i, bytes) else str(i) for i in ids.ravel()]
    return np.array(texts, object).reshape(ids.shape)
