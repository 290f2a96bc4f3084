"""What a page says, and that it is complete."""

import html.parser
import json
import re

import numpy as np
import plotly.graph_objects
import pytest

from serving.answers import quality
from serving.report import numbers, report
from serving.report import page as writing
from serving.report.errors import ReportError
from serving.shared import spectrum

SECTIONS = (
    "kernel",
    "classes",
    "spectrum",
    "alignment",
    "layers",
    "nearest",
    "references",
    "support",
    "novelty",
    "predictions",
    "fit",
    "export",
)


@pytest.fixture(scope="module")
def text(page_file):
    return page_file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def said(page):
    return {section.key: section for section in page.sections}


def test_all_sections_have_a_sentence_and_numbers(page):
    assert tuple(section.key for section in page.sections) == SECTIONS
    for section in page.sections:
        assert section.sentence.endswith(".")
        assert "nan" not in section.sentence
        assert section.tables
        assert all(len(row) == len(table.head) for table in section.tables for row in table.rows)


def test_sentences_say_the_numbers(case, said):
    cosines = numbers.cosine(case.kernel)
    same = (case.y[:, None] == case.y) & ~np.eye(len(case.y), dtype=bool)
    assert f"a cosine of {cosines[same].mean():.2f} on average" in said["kernel"].sentence
    assert f"classes {cosines[case.y[:, None] != case.y].mean():.2f}" in said["kernel"].sentence
    dimension = spectrum.effective_dimension(spectrum.eigenvalues(case.kernel), 1e-3)
    assert f"dimension tr K(K + λ)⁻¹ is {dimension:,.1f}" in said["spectrum"].sentence
    y = np.eye(2)[case.y]
    assert f"targets is {spectrum.target_alignment(case.kernel, y):.3f}" in said["alignment"].sentence
    near = numbers.neighbours(cosines, 1)[:, 0]
    assert f"For {np.mean(case.y[near] == case.y):.1%} of the examples" in said["nearest"].sentence


def test_predictions_are_those_of_answers_and_network(case, said):
    sentence = said["predictions"].sentence
    expected = np.where(np.arange(2) == case.y[:, None], 0.8, 0.2)
    error = quality.reliability(expected, case.y).error
    assert sentence.startswith("Predict is right on 100.0% of 40 examples at a mean confidence of 80.0%, with a")
    assert f"a calibration error of {error:.1%}; the network" in sentence
    assert "the network is right on 90.0%" in sentence


def test_references_that_are_in_the_data_are_shown_as_images(said):
    assert "The references are examples of" in " ".join(said["references"].notes)
    assert said["references"].body.count("<img") > 2 * said["references"].body.count('class="query"')
    assert said["support"].body.count("<img") == said["references"].body.count("<img")


def test_each_variables_share_is_of_the_kernel(said, exported):
    shares = exported("cnn").result.manifest["kernel"]["shares"]
    rows = {row[0]: float(row[3]) for row in said["layers"].tables[0].rows}
    assert rows == pytest.approx(shares, abs=1e-6)
    assert max(shares, key=shares.get) == said["layers"].sentence.partition(" ")[0]


def test_an_older_export_has_no_shares(exported):
    manifest = dict(exported("cnn").result.manifest)
    manifest["kernel"] = {k: v for k, v in manifest["kernel"].items() if not k.startswith("shares")}
    assert "does not record the share" in report.layers_section(manifest).sentence


class Links(html.parser.HTMLParser):
    """Tags that load something, and those that are open at the end."""

    def __init__(self):
        super().__init__()
        self.loaded, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.loaded += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action") and v[:1] != "#"]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_loaded_from_outside(text):
    links = Links()
    links.feed(text)
    assert links.open == []
    assert links.loaded
    assert all(link.startswith("data:") for link in links.loaded)
    assert "default-src 'none'" in text
    assert len(text) < 10 << 20


def test_figures_are_what_plotly_takes(text):
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1])
    assert len(figures) == 9
    for figure in figures.values():
        valid = re.sub(r'"@(sequential|diverging)"', '"Blues"', json.dumps(figure))
        valid = json.loads(re.sub(r'"@\w+"', '"#000"', valid))
        plotly.graph_objects.Figure(valid["data"], valid["layout"])


def test_names_are_text(case, page):
    odd = writing.Page("<script>alert(1)</script>", ["a & b"], [], page.sections[:1], ["</main>"])
    text = writing.to_html(odd)
    assert "<script>alert" not in text
    assert "a &amp; b" in text
    assert "&lt;/main&gt;" in text


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    with pytest.raises(ReportError, match=r"Writing .*report\.html failed: No space left on device"):
        writing.write(path, "after")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "before"
