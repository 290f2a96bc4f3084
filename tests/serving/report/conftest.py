"""Data and answers about one small export, and a page of each, for all tests of reports."""

import dataclasses
import os
from pathlib import Path

import answers_models
import numpy as np
import pytest
from report_cases import page_of, save

from serving.report import numbers
from serving.report.page import to_html, write

N = 40


@dataclasses.dataclass(frozen=True)
class Case:
    """An export with images for inputs and two outputs, data in a file, answers about its first rows."""

    export: Path
    data: Path
    x: np.ndarray
    y: np.ndarray
    kernel: np.ndarray
    answers: Path


@pytest.fixture(scope="session")
def case(exported, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    one = exported("cnn")
    (x,) = one.inputs(N)
    kernel = np.asarray(one.loaded.ntk_symmetric(x))
    y = np.asarray(one.loaded.forward(x)).argmax(1)
    y[:4] = 1 - y[:4]
    mean = np.where(np.arange(2) == y[:, None], 0.8, 0.2)
    cosines = numbers.cosine(kernel)
    recorded = {"task": "classification", "network_output": "logits"}
    answers = answers_models.save_answers(directory / "answers", x, cosines, np.arange(N), mean, recorded)
    return Case(one.path.parent, save(directory / "data.npz", x=x, y=y), x, y, kernel, answers)


@pytest.fixture(scope="session")
def page(case):
    return page_of(case.export, case.data, case.answers)


@pytest.fixture(scope="session")
def page_file(page, tmp_path_factory):
    path = Path(tmp_path_factory.mktemp("page")) / "report.html"
    write(path, to_html(page))
    assert os.listdir(path.parent) == ["report.html"]
    return path
