"""The benchmark of models of real size: a tiny one from its file to its answers, and the table of what fails."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.isolation import ROOT
from benchmarks.real import report
from benchmarks.real.models import DEFAULT_MODELS, MODELS


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows_of(text):
    """The rows of the Markdown table in a text, each a dict by column."""
    header, _, *rows = (cells(line) for line in text.splitlines() if line.startswith("|"))
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What the command prints and writes for the tiny model, with an interpreter without torch for torch's part."""
    path = tmp_path_factory.mktemp("benchmark") / "result.json"
    without_torch = path.with_name("python")
    without_torch.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    without_torch.chmod(0o755)
    command = [sys.executable, "-m", "benchmarks.real", "--models=tiny", f"--json={path}"]
    done = subprocess.run(
        [*command, f"--torch_python={without_torch}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(path.read_text())


def test_row_of_the_table(tiny):
    (row,) = rows_of(tiny[0].stdout)
    assert row["model"] == MODELS["tiny"].title
    stages = sum(float(row[stage]) for stage in report.STAGES)
    assert stages == pytest.approx(float(row["export s"]), abs=1.0)
    assert float(row["MiB"]) > 0
    assert float(row["load s"]) <= float(row["start cold s"])
    assert all(float(row[f"s an example, {n}"]) > 0 for n in report.EXAMPLES)
    assert all(float(row[f"{process} GiB"]) > 0.1 for process in ("export", "check", "requests"))
    assert float(row["GFLOP/s"]) >= 0
    assert row["torch, 1"].startswith("exit code 1: ModuleNotFoundError") or row["torch, 1"] == "torch is not installed"


def test_facts_as_they_come(tiny):
    assert "tiny                   export  running" in tiny[0].stderr
    (model,) = tiny[1]["models"]
    assert set(model["export"]["stages"]) == set(report.STAGES)
    assert model["export"]["flops"]["example"] > 0
    assert set(model["cached"]["seconds"]) == {str(n) for n in report.EXAMPLES}


def test_what_fails_is_shown():
    rows = [
        {
            "title": "too slow",
            "export": {"failure": "> 900 s", "phase": "verify", "stages": {"load": {"seconds": 1.0}}},
        },
        {"title": "not loaded", "cold": {"failure": "x" * 100}},
    ]
    slow, broken = rows_of(report.table(rows))
    assert (slow["load"], slow["verify"], slow["export s"], slow["MiB"]) == ("1.0", "–", "> 900 s", "–")
    assert broken["start cold s"] == 39 * "x" + "…"
    assert report.in_words(rows[0]["export"], "export") == "> 900 s (during: verify)"


def test_part_of_the_outputs_is_told():
    """Of torch's, where there was not time for all of them."""
    entry = {"seconds": 100.0, "outputs": 1000, "done": 400, "way": "output by output"}
    (row,) = rows_of(report.table([{"title": "m", "torch": {"torch": {"1": entry}}, "cached": {"seconds": {"1": 20}}}]))
    assert (row["torch, 1"], row["torch / ours, 1"], row["torch, 2"]) == ("≈ 100", "5×", "–")


@pytest.mark.parametrize("name", ["digits", "tiny"])
def test_inputs_are_those_that_the_model_expects(name):
    model = MODELS[name].build()
    x = MODELS[name].inputs(model.inputs[0], 64)
    assert x.shape == (64, *model.input_shape[1:])
    assert x.dtype == np.dtype(model.inputs[0].dtype)
    assert (x.min() >= MODELS[name].low, x.max() < MODELS[name].high) == (True, True)


def test_every_model_but_the_trial_is_in_the_table():
    assert set(MODELS) - set(DEFAULT_MODELS) == {"tiny"}
