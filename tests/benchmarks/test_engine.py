"""The benchmark: one tiny model end to end, and what becomes of contenders that fail."""

import json
import os
import re
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from benchmarks import engine, report
from benchmarks.cases import CASES, DEFAULT_CASES
from benchmarks.contenders import CONTENDERS
from benchmarks.data import CaseData, deviation
from benchmarks.isolation import ROOT, Limits, run_isolated
from benchmarks.measure import Repetitions, Report, measure

LIMITS = Limits(seconds=60, bytes=2 << 30)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text):
    """The Markdown tables of a text, each a list of rows, each a dict by column."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            header, rule, *rows = map(cells, lines)
            assert {len(line) for line in lines} == {len(lines[0])}  # aligned
            assert all(set(cell) <= set("-:") for cell in rule)
            found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


# ----------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What the command prints and writes for the tiny model, with an interpreter without torch for torch's part."""
    path = tmp_path_factory.mktemp("benchmark") / "result.json"
    command = [sys.executable, "-m", "benchmarks.engine", "--models=tiny", f"--json={path}"]
    command += ["--contenders=layerwise,structured_derivatives,torch_jacobian", "--seconds=0.1"]
    without_torch = path.with_name("python")
    without_torch.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    without_torch.chmod(0o755)
    done = subprocess.run(
        [*command, f"--torch_python={without_torch}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(path.read_text())


def test_summary_has_a_row_for_the_model(tiny):
    summary, _ = tables(tiny[0].stdout)
    (row,) = summary
    assert [row[key] for key in ("model", "parameters", "N×N", "O")] == ["MLP 8-16-10", "314", "3×3", "10"]
    assert float(row["best of NT / ours"].rstrip("×")) == pytest.approx(
        float(row["NT 3 ms"]) / float(row["ours ms"]), rel=0.01
    )


def test_details_have_a_row_for_each_contender(tiny):
    _, details = tables(tiny[0].stdout)
    assert [row["contender"] for row in details] == ["layerwise", "structured_derivatives", "torch_jacobian"]
    for row in details[:2]:
        assert 0 < float(row["min ms"]) <= float(row["median ms"]) <= float(row["max ms"])
        assert float(row["off by"]) < 1e-5
        assert int(row["calls"]) >= 5
        assert float(row["peak MiB"]) > 0


def test_heading_names_the_machine(tiny):
    heading = tiny[0].stdout.partition("\n")[0]
    assert "CPU " in heading
    assert "cores " in heading


def test_json_has_what_was_measured(tiny):
    _, result = tiny
    (model,) = result["models"]
    entry = model["entries"]["layerwise"]
    assert entry["failure"] is None
    assert entry["first_call_seconds"] > entry["median_seconds"] > 0
    assert result["machine"]["cores"]


def test_progress_is_on_standard_error(tiny):
    assert "tiny               structured_derivatives     running" in tiny[0].stderr


def test_a_contender_that_cannot_run_is_shown_and_the_others_are_measured(tiny):
    _, details = tables(tiny[0].stdout)
    assert "No module named 'numpy'" in details[2]["note"]


# ------------------------------------------------------------------------------------------------- limits and failures


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """`worker(source)` runs a worker whose work is this source, within limits, and returns the outcome."""

    def run(source, limits=LIMITS):
        code = "import sys\nfrom benchmarks.measure import run_worker\n\n\ndef work(task, report):\n"
        code += textwrap.indent(textwrap.dedent(source), "    ") + "\n\nsys.exit(run_worker(work, sys.argv))\n"
        (tmp_path / "some_worker.py").write_text(code)
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        return run_isolated("some_worker", {"x": 3}, tmp_path, limits, environment={"PYTHONPATH": path})

    return run


def test_a_worker_reports_facts(worker):
    outcome = worker("report(y=task['x'] + 1)")
    assert outcome.failure is None
    assert outcome.facts == {"phase": "done", "y": 4}


def test_a_worker_beyond_its_time_is_killed_and_what_it_reported_is_known(worker):
    outcome = worker("report(phase='first call', y=1)\nimport time\ntime.sleep(100)", Limits(2.5, 1 << 30))
    assert outcome.failure == "> 2.5 s"
    assert outcome.facts == {"phase": "first call", "y": 1}


def test_a_worker_beyond_its_memory_is_killed(worker):
    outcome = worker("import time\nx = bytearray(300 << 20)\ntime.sleep(100)", Limits(60, 200 << 20))
    assert outcome.failure == "> 0.2 GiB"


def test_an_error_becomes_one_line(worker):
    assert worker("raise ValueError('no rule for this\\nat all')").failure == "ValueError: no rule for this"


def test_a_crash_is_told_by_its_signal(worker):
    assert worker("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)").failure == "killed by SIGSEGV"


def test_an_end_without_a_report_shows_the_last_line_of_output(tmp_path):
    outcome = run_isolated("benchmarks.no_such_worker", {}, tmp_path, LIMITS)
    assert "No module named benchmarks.no_such_worker" in outcome.failure
    assert outcome.facts == {}


# ------------------------------------------------------------------------------------------------------- measuring


@pytest.fixture
def reported(tmp_path):
    """A report, and a function that reads it."""
    return Report(tmp_path / "report.json"), lambda: json.loads((tmp_path / "report.json").read_text())


def test_measure_leaves_compilation_and_warming_up_out(reported):
    waits = iter([0.3, 0.1, *[0.01] * 100])

    def call():
        time.sleep(next(waits))
        return np.ones(2)

    write, read = reported
    np.testing.assert_array_equal(measure(call, write, Repetitions(count=5, shortest=0.0)), np.ones(2))
    facts = read()
    assert facts["calls"] == 5
    assert 0.01 <= facts["min_seconds"] <= facts["median_seconds"] <= facts["max_seconds"] < 0.1
    assert facts["compile_seconds"] == pytest.approx(0.3 - facts["median_seconds"], abs=0.05)


def test_measure_stops_where_calls_are_long(reported):
    write, read = reported
    measure(lambda: time.sleep(0.02) or np.ones(2), write, Repetitions(count=1000, shortest=100.0, longest=0.05))
    assert 1 <= read()["calls"] <= 3


def test_measure_sees_the_peak_of_memory_of_each_phase(reported):
    write, read = reported
    sizes = iter([200 << 20, *[50 << 20] * 100])
    measure(lambda: np.ones(next(sizes) // 8)[:2].copy(), write, Repetitions(count=2, shortest=0.0))
    facts = read()
    assert 190 << 20 < facts["peak_bytes"] < 260 << 20
    assert 40 << 20 < facts["later_peak_bytes"] < 110 << 20


# ------------------------------------------------------------------------------------------------- data and tables


def test_data_survive_the_file(tmp_path):
    data = CaseData(np.ones((2, 3)), np.zeros((2, 3)), {"a/b:0": np.ones(4)}, {"c": np.ones(())}, np.eye(2))
    data.save(tmp_path / "data.npz")
    loaded = CaseData.load(tmp_path / "data.npz")
    assert loaded.parameters == 4
    assert loaded.trainable.keys() == {"a/b:0"}
    assert loaded.frozen.keys() == {"c"}
    np.testing.assert_array_equal(loaded.reference, np.eye(2))


def test_deviation_is_relative_to_the_largest_entry_of_what_was_checked():
    kernel = np.array([[1.0, 4.0, 9.0], [2.0, 2.5, 9.0]])
    assert deviation(kernel, np.array([[1.0, 4.0], [2.0, 2.0]])) == 0.125
    with pytest.raises(ValueError, match=r"expected a kernel of shape \(4, 4\) or larger, received \(2, 3\)"):
        deviation(kernel, np.ones((4, 4)))


def row(**entries):
    return {"name": "m", "title": "M", "parameters": 1234, "n": 2, "outputs": 10, "entries": entries}


def finished(seconds, **facts):
    return {"failure": None, "median_seconds": seconds, "deviation": 1e-7} | facts


def test_summary_compares_with_the_best_of_those_that_finished():
    entries = {
        "layerwise": finished(0.1, flops=2e9, matmul_flops_per_second=1e11),
        "jacobian_contraction": {"failure": "> 360 s", "phase": "first call"},
        "ntk_vector_products": finished(0.5, deviation=5e-3),
        "structured_derivatives": finished(0.3),
        "torch_jacobian": {"failure": "torch is not installed"},
    }
    ((cells_by_column,),) = tables(report.summary([row(**entries)], list(CONTENDERS)))
    assert cells_by_column["parameters"] == "1,234"
    assert cells_by_column["ours ms"] == "100"
    assert cells_by_column["NT 1 ms"] == "> 360 s"
    assert cells_by_column["NT 2 ms"] == "500 (off by 5e-03)"
    assert cells_by_column["torch VP ms"] == "–"
    assert cells_by_column["best of NT / ours"] == "3×"
    assert cells_by_column["best of torch / ours"] == "–"
    assert cells_by_column["GFLOP/s"] == "20"
    assert cells_by_column["of matmul"] == "20%"


def test_a_rate_without_a_count_is_a_dash():
    ((cells_by_column,),) = tables(report.summary([row(layerwise=finished(0.1, flops=None))], ["layerwise"]))
    assert cells_by_column["GFLOP/s"] == cells_by_column["of matmul"] == "–"


def test_long_errors_are_shortened_in_the_summary_and_whole_in_the_details():
    failing = row(layerwise={"failure": "ValueError: " + "x" * 100 + "|", "phase": "lowering"})
    assert "x" * 100 not in report.summary([failing], ["layerwise"])
    assert "x" * 100 + "\\| (during: lowering)" in report.details([failing], ["layerwise"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (finished(0.1), None),
        ({"failure": "> 360 s"}, "m: > 360 s"),
        ({**finished(0.1), "deviation": 1e-3}, r"m: expected a kernel within 0\.0001 .* off by 0\.001"),
        ({**finished(0.1), "deviation": float("nan")}, "off by nan"),
    ],
)
def test_the_command_fails_if_our_engine_does(entry, message):
    failure = engine.our_failure(row(layerwise=entry), tolerance=1e-4)
    assert failure is None if message is None else re.search(message, failure)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--models=resnet50,resnet5", "expected some of mlp, .*; received 'resnet5'"),
        ("--models=", "expected some of mlp, .*; received ''"),
        ("--contenders=torch", "expected some of layerwise, .*; received 'torch'"),
        ("--timeout=0", "expected a positive number, received 0"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(argument, message, capsys):
    with pytest.raises(SystemExit) as raised:
        engine.main([argument])
    assert raised.value.code == 2
    assert re.search(message, capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------------------ models


def test_inputs_are_those_that_the_model_expects():
    x1, x2 = CASES["efficientnetb0"].inputs((4, 4, 3))
    assert x1.shape == x2.shape == (2, 4, 4, 3)
    assert x1.dtype == np.float32
    assert 0 <= x1.min() < 50 < 200 < x1.max() <= 255
    assert not np.array_equal(x1, x2)


def test_the_table_has_every_model_but_the_trial():
    assert set(CASES) - set(DEFAULT_CASES) == {"tiny"}
