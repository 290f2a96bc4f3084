"""Data, exports and answers of which a page can say little, or none can be written."""

import json

import answers_models
import numpy as np
import pytest
from report_cases import page_of, save

from serving.dataset.data import Rows
from serving.dataset.errors import DatasetError
from serving.dataset.model import Model
from serving.report import asking, main, numbers, sections
from serving.report.answers import find_answers
from serving.report.asking import find_kernel
from serving.report.page import to_html
from serving.report.targets import targets_of


def sentences(page):
    return {section.key: section.sentence for section in page.sections}


def test_without_y_the_page_says_what_is_left_out(case, tmp_path):
    page = page_of(case.export, save(tmp_path / "x.npz", x=case.x))
    assert page.notices[0].startswith("The data has no y. Left out: the order by class, classes, alignment")
    said = sentences(page)
    assert "classes" not in said
    assert said["alignment"] == said["predictions"] == "Left out: the data has no y."
    assert "Two different examples have a cosine" in said["kernel"]
    to_html(page)


def test_one_example(case, tmp_path):
    page = page_of(case.export, save(tmp_path / "x.npz", x=case.x[:1], y=case.y[:1]))
    assert page.notices == ["The data has one example. Left out: all that takes pairs of examples."]
    said = sentences(page)
    assert said["nearest"] == said["alignment"] == "Left out: it takes two examples."
    assert said["kernel"].startswith("One example: its kernel with itself is ")
    to_html(page)


def test_one_class(case, tmp_path):
    page = page_of(case.export, save(tmp_path / "x.npz", x=case.x, y=np.ones(len(case.x), int)))
    assert sentences(page)["alignment"] == "Left out: all examples are of class 1."
    to_html(page)


def test_numbers_as_targets(case, tmp_path):
    y = np.random.default_rng(0).standard_normal((len(case.x), 2))
    cosines = numbers.cosine(case.kernel)
    recorded = {"task": "regression", "network_output": "numbers"}
    ids = np.array([f"image {k}" for k in range(len(y))])
    answers = answers_models.save_answers(tmp_path / "answers", case.x, cosines, ids, y + 0.6, recorded)
    page = page_of(case.export, save(tmp_path / "d.npz", x=case.x, y=y, id=ids), answers)
    said = sentences(page)
    assert "Predict is off by 0.600" in said["predictions"]
    assert (
        "within 1 and 2 standard deviations are 0.0% (normal: 68.3%) and 100.0% (normal: 95.4%)" in said["predictions"]
    )
    references = next(section for section in page.sections if section.key == "references")
    assert "The references are examples of" in " ".join(references.notes)
    to_html(page)


def test_ids_of_other_data_are_not_shown_as_images(case, tmp_path):
    """Rows of the training set are not those of the test set, though they have the same numbers."""
    data = save(tmp_path / "d.npz", x=case.x[::-1], y=case.y[::-1])
    for references, found in ((None, False), (case.data, True)):
        page = page_of(case.export, data, case.answers, references=references)
        section = next(section for section in page.sections if section.key == "references")
        assert ("The references are other examples than" in " ".join(section.notes)) == (not found)
        assert (section.body.count("<img") == section.body.count('class="query"')) == (not found)


def test_large_sets_are_sampled_and_the_page_says_so(case, tmp_path):
    page = page_of(case.export, case.data, examples=12)
    assert page.about[0] == "12 examples of 40, drawn at random, of data.npz"
    assert page.tiles[0][:2] == ("12", "examples")


def test_a_kernel_of_zeros():
    kernel, targets = np.zeros((5, 5), np.float32), targets_of(np.array([0, 1, 0, 1, 1]))
    section = sections.kernel_section(kernel, numbers.cosine(kernel), targets, list("abcde"), "")
    assert "5 examples of 5 have no kernel with themselves" in " ".join(section.notes)
    assert sections.spectrum_section(kernel)[0].sentence == "All eigenvalues are 0: no variable moves any output."
    assert "the kernel is the same for all pairs" in sections.alignment_section(kernel, targets)[0].sentence


def test_a_constant_kernel():
    kernel, targets = np.full((5, 5), 3, np.float32), targets_of(np.array([0, 1, 0, 1, 1]))
    assert "1 eigenvalue half of it and 1 of 5" in sections.spectrum_section(kernel)[0].sentence
    assert "the kernel is the same for all pairs" in sections.alignment_section(kernel, targets)[0].sentence


def test_spectra_of_many_are_of_some(monkeypatch):
    monkeypatch.setattr(sections, "SPECTRUM", 6)
    section, _ = sections.spectrum_section(np.eye(9, dtype=np.float32))
    assert "Of 6 of the 9 examples, drawn at random" in section.notes[0]


def test_too_many_classes_for_a_map():
    targets = targets_of(np.arange(61))
    sentence = sections.classes_section(np.eye(61, dtype=np.float32), targets).sentence
    assert sentence == "Left out: there are 61 classes, and 60 can be shown."


def test_a_kernel_that_is_not_finite(case, monkeypatch):
    asked = asking.Asked(find_kernel(str(case.export)))
    monkeypatch.setattr(Model, "call", lambda *_: {"ntk": np.full((3, 3), np.nan, np.float32)})
    with pytest.raises(
        DatasetError, match="expected a kernel of finite numbers, received nan between examples 0 and 0"
    ):
        asked.kernel(Rows({"": case.x[:3]}, None, None))


def test_a_kernel_in_parts_is_the_same(case, monkeypatch):
    asked = asking.Asked(find_kernel(str(case.export)))
    monkeypatch.setattr(asking, "_REQUEST", 8 * len(case.x) * 16)
    kernel = asked.kernel(Rows({"": case.x}, None, None))
    np.testing.assert_allclose(kernel, case.kernel, atol=1e-5 * np.max(case.kernel))


def test_nan_in_the_data(case, tmp_path):
    x = case.x.copy()
    x[3, 0, 0, 0] = np.nan
    with pytest.raises(DatasetError, match=r"expected finite numbers, received nan in 'x', example 3"):
        page_of(case.export, save(tmp_path / "x.npz", x=x))


def test_kept_axes_are_averaged_and_the_page_says_so():
    manifest = {
        "kernel": {"shape": [None, None, 2, 3, 3]},
        "output": {"shape": [None, 2, 3]},
        "configuration": {"ntk": {"trace_axes": [], "diagonal_axes": [1]}},
    }
    assert sections.about_kept(manifest) == (
        "This export keeps output axes; here the kernel is one number for a pair: of output axes kept in pairs (2) the "
        "mean of equal positions and of those kept once (1) the mean."
    )
    manifest["kernel"]["shape"] = [None, None]
    assert sections.about_kept(manifest) == ""


def test_no_export(tmp_path):
    with pytest.raises(DatasetError, match=r"Expected an export in .* found none\. Give the --output of ntk-export"):
        find_kernel(str(tmp_path))


@pytest.mark.parametrize("what", ["nothing", "no_manifest", "no_answers"])
def test_no_answers(what, tmp_path):
    base = tmp_path / "answers"
    if what != "nothing":
        (base / "1/assets.extra").mkdir(parents=True)
    if what == "no_answers":
        (base / "1/assets.extra/ntk_manifest.json").write_text(json.dumps({"model": "m"}))
    with pytest.raises(DatasetError, match=r"xpected answers.* Give the --output of ntk-fit\."):
        find_answers(str(base))


def command(capsys, *arguments):
    """Exit code, standard output and error."""
    rest = main._COMMAND.parse(["ntk-report", *arguments])
    return main.main(rest), *capsys.readouterr()


@pytest.fixture(autouse=True)
def flags_as_before():
    for name in ("export", "data", "answers", "references", "output", "examples"):
        main._FLAGS[name].unparse()


def test_command_writes_the_page_and_says_where(case, tmp_path, capsys):
    output = tmp_path / "r.html"
    code, out, err = command(capsys, f"--export={case.export}", f"--data={case.data}", f"--output={output}")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(output)
    assert output.stat().st_size > 1 << 20


def test_command_with_an_error_leaves_nothing(case, tmp_path, capsys):
    output = tmp_path / "r.html"
    code, _, err = command(capsys, f"--export={case.export}", "--data=nothing.npz", f"--output={output}")
    assert (code, err) == (1, "error: Expected the file 'nothing.npz', found none. Correct the path.\n")
    assert list(tmp_path.iterdir()) == []
    code, _, err = command(capsys, f"--export={case.export}", f"--data={case.data}", "--output=/nowhere/r.html")
    assert code == 1
    assert "Expected a directory '/nowhere' to write r.html into, found none." in err


def test_command_says_all_that_is_wrong_with_its_usage(capsys):
    code, _, err = command(capsys, "more", "--output=report.pdf")
    assert code == 2
    for part in ("unexpected argument 'more'", "--export is missing", "--data is missing", "ends in .html"):
        assert part in err
