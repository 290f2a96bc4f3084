"""What README and docs/ say: links lead somewhere, tables have every key, examples run, and the site is built."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys

import pytest

from exporter import load_config
from exporter.config import ExportConfig, FeaturesConfig, NtkConfig, VerifyConfig

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


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
