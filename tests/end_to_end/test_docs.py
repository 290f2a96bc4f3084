"""What README and docs/ say: links lead somewhere, tables have every key, examples run, and the site is built."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import zarr

import serving
from exporter import load_config
from exporter.config import ExportConfig, FeaturesConfig, NtkConfig, VerifyConfig
from serving.local_server import LocalServer, ModelOptions

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    """The code blocks of a page that are of a language, "" for none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for written, block in found if written == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, heading = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_configuration_page_has_the_defaults():
    (yaml,) = blocks(ROOT / "docs/configuration.md", "yaml")
    assert load_config(yaml) == load_config()


@pytest.mark.parametrize("section", [NtkConfig, ExportConfig, VerifyConfig, FeaturesConfig])
def test_the_configuration_tables_have_every_key(section):
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    fields = [field.name for field in dataclasses.fields(section)]
    assert list(hooks.attributes(section)) != []
    table = hooks.on_page_markdown(f"Before\n\n<!-- table: {section.__name__} some -->\n", page=None).splitlines()
    assert [row.split("`")[1] for row in table[4:]] == [f"some.{name}" for name in fields]
    assert all(len(row.split(" | ")[2]) > 10 for row in table[4:])
    page = (ROOT / "docs/configuration.md").read_text()
    assert f"<!-- table: {section.__name__} " in page


def test_the_example_of_monitor_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "docs/monitor_training.md", "python")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(example, "docs/monitor_training.md", "exec"), {})
    rows = [list(map(float, line.split())) for line in output.getvalue().splitlines()]
    written = [
        list(map(float, line.split())) for line in blocks(ROOT / "docs/monitor_training.md", "text")[0].splitlines()
    ]
    assert [row[0] for row in rows] == [row[0] for row in written] == [1, 3, 5, 7]
    for row, expected in zip(rows, written, strict=True):
        assert row == pytest.approx(expected, rel=0.5)
    assert list((tmp_path / "logs/ntk").glob("events.out.tfevents.*"))


def test_the_site_is_built_without_warnings_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").glob("*.html"):
        assert not re.search(r"<(script|link|img)[^>]*https?://", page.read_text()), page.name
    assert "whether requests for TensorFlow Serving" in (tmp_path / "site/configuration.html").read_text()
    assert "NtkCallback" in (tmp_path / "site/api.html").read_text()


# Python blocks, in the directory where the pages' demo was made. The others are run elsewhere, or cannot be here.
ELSEWHERE = {
    ("features.md", "import hashlib"): "test_count_sketch.py",
    ("monitor_training.md", "import keras"): "test_the_example_of_monitor_training_runs",
    ("datasets.md", "from dask_jobqueue import SLURMCluster"): "needs SLURM",
    ("datasets.md", "from dask_kubernetes.operator import KubeCluster, make_cluster_spec"): "needs Kubernetes",
}
PYTHON = {
    page: [block for block in blocks(page, "python") if (page.name, block.splitlines()[0]) not in ELSEWHERE]
    for page in PAGES
}


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON[page]], ids=lambda page: page.name)
def test_python_blocks_run(page, demo, tmp_path, monkeypatch):
    """One after the other, of names that the text before them speaks of, with a server where they ask one."""
    directory, *_ = demo
    for name, target in {"demo": directory, "answers": directory / "digits_answers"}.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    with np.load(directory / "digits.npz") as digits:
        x1, x2, x = (digits["x_test"][:n] for n in (2, 3, 20))
        y = digits["y_test"][:20]
    _save_store(tmp_path / "digits.zarr")
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    names = {"x1": x1, "x2": x2, "x": x, "y": y, "model": model, "tf": tf, "serving": serving}
    names["new_value"] = keras.models.load_model(directory / "digits.keras").get_layer("logits").kernel.numpy()
    served = [ModelOptions(directory / "digits_ntk", "digits"), ModelOptions(directory / "digits_answers", "answers")]
    with contextlib.ExitStack() as stack:
        address = "localhost:8500"
        if any(address in block for block in PYTHON[page]):
            address = stack.enter_context(LocalServer(served)).grpc_address
        for block in PYTHON[page]:
            exec(compile(block.replace("localhost:8500", address), page.name, "exec"), names)


def _save_store(path):
    """What `ntk-dataset` writes, as far as a page reads it."""
    group = zarr.open_group(path, mode="w")
    group.create_array("kernel", data=np.eye(6, dtype=np.float32))
    group.create_array("y", data=np.arange(6))
    group.attrs["ntk_dataset"] = {"kind": "kernel"}


def test_blocks_that_are_not_run_there_are_those_named():
    written = {(page.name, block.splitlines()[0]) for page in PAGES for block in blocks(page, "python")}
    assert set(ELSEWHERE) <= written


COMMANDS = {
    "ntk-export": "exporter.command.main",
    "ntk-serve": "serving.start.main",
    "ntk-bundle": "serving.bundle.main",
    "ntk-doctor": "serving.doctor.main",
    "ntk-dataset": "serving.dataset.main",
    "ntk-fit": "serving.answers.main",
    "ntk-report": "serving.report.main",
}


def test_commands_have_the_flags_that_pages_show():
    shown = {}
    for page in PAGES:
        for code in [*blocks(page, ""), *re.findall(r"`(ntk-[^`]*)`", page.read_text())]:
            for name, rest in re.findall(r"\b(ntk-(?!exporter)\w+)((?:.|\n +|\\\n)*)", code):
                shown.setdefault(name, set()).update(re.findall(r"--(\w+)", rest))
    assert set(shown) == set(COMMANDS)
    for name, given in shown.items():
        known = importlib.import_module(COMMANDS[name])._COMMAND.flags
        assert [flag for flag in given if flag not in known and flag not in ("help", "verbosity")] == [], name
