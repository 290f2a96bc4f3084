"""The examples, small: each runs, and finds what it says."""

import re
from pathlib import Path

import numpy as np
import pytest

from examples import digits, digits_neighbors, inside_tf_function, kernel_while_training

# Keras 3.15 and TensorFlow 2.21 with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_demo_writes_the_savedmodel_where_it_says_and_nothing_else(demo):
    output, stdout, stderr = demo
    assert f"the SavedModel lies in {output / 'digits_ntk' / '1'}\n" in stdout
    assert (output / "digits_ntk" / "1" / "saved_model.pb").is_file()
    data = {"digits.keras", "digits.npz", "digits_train.npz", "digits_test.npz", "ntk.yaml"}
    assert {path.name for path in output.iterdir()} == data | {"digits_ntk", "digits_answers", "report.html"}
    assert stderr == ""


def test_demo_shows_the_command_and_the_stages_of_the_export(demo):
    output, stdout, _ = demo
    command = f"$ ntk-export --model={output}/digits.keras --config={output}/ntk.yaml --output={output}/digits_ntk"
    stages = re.findall(r"^(\w+) .* \d+\.\d s$", stdout.partition(command)[2], re.MULTILINE)
    assert stages[:6] == ["load", "functionalize", "choose", "lower", "write", "verify"]


def test_demo_shows_a_kernel_block_that_equals_the_jacobians(demo):
    _, stdout, _ = demo
    rows = re.findall(r"^ +[01] ((?: +[-+.e\d]+){4})$", stdout, re.MULTILINE)
    assert len(rows) == 4
    (difference,) = re.findall(r"relative to the largest entry: (\S+)$", stdout, re.MULTILINE)
    assert 0 < float(difference) < 1e-5


def test_demo_writes_a_page(demo):
    output, stdout, _ = demo
    command = f"$ ntk-report --export={output}/digits_ntk --data={output}/digits_test.npz --answers="
    assert f"\n{output}/report.html\n" in stdout.partition(command)[2]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "Neural tangent kernel of digits" in page
    assert "The references are examples of digits_train.npz" in page


def test_demo_asks_answers_without_what_made_them(demo):
    output, stdout, _ = demo
    asked = stdout.partition("$ python -m examples.digits_answers")[2].partition("\n6. ")[0]
    with np.load(output / "digits_train.npz") as train, np.load(output / "digits_test.npz") as test:
        references, digits_of = train["y"], test["y"]
    shown = re.findall(r"test image (\d+), a (\d)", asked)
    assert len(shown) == 4
    assert all(digits_of[int(row)] == int(digit) for row, digit in shown)
    listed = re.findall(r"#(\d+) \(a (\d)\)", asked)
    assert len(listed) == 3 * 2 * 4
    assert all(references[int(i)] == int(digit) for i, digit in listed)
    sure = [float(value) for value in re.findall(r"predicted +\d at ([\d.]+)%", asked)]
    assert sure[0] > sure[1] > sure[2]
    novelty, median = re.search(r"novelty +([\d.]+), the median ([\d.]+)", asked).groups()
    assert 0 < float(median) < float(novelty) < 1
    assert "exporter: nothing\n" in asked
    assert f"the answers lie in {output / 'digits_answers' / '1'}\n" in asked


def test_demo_predicts_with_the_kernel_without_what_made_it(demo):
    _, stdout, _ = demo
    rows = re.findall(r"^(.+?) +\d+ +([\d.]+)%$", stdout, re.MULTILINE)
    accuracy = {name.strip(): float(value) for name, value in rows}
    assert accuracy["kernel regression on the network's NTK"] > 93
    assert accuracy["kernel regression on the network's NTK"] > accuracy["the same on inner products of pixels"] + 2
    assert accuracy["the network"] > 85
    assert "exporter: nothing\n" in stdout


def test_demo_shows_why_a_step_failed(tmp_path, capfd):
    (tmp_path / "model.keras").write_text("no archive")
    log = tmp_path / "log.txt"
    assert digits.run("exporter", [f"--model={tmp_path / 'model.keras'}", f"--output={tmp_path / 'out'}"], log) == 1
    out, err = capfd.readouterr()
    assert out == f"$ ntk-export --model={tmp_path}/model.keras --output={tmp_path}/out\n\n"
    assert "truncated, damaged, or no Keras archive" in err
    assert "failed with exit code 1\n" in err


def test_demo_ends_with_the_step_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "run", lambda module, arguments, log: 1 if module == "exporter" else 0)
    assert digits.main([str(tmp_path / "demo")]) == 1
    out = capsys.readouterr().out
    assert "2. Export" in out
    assert "3. " not in out


def test_inside_tf_function_agrees_with_numpy_and_knows_what_it_does_not_know(capsys):
    assert inside_tf_function.main(["--units=32", "--reference=100", "--queries=30"]) < 1e-4
    left = dict(re.findall(r"^(digits.*?) {2,}([\d.]+)% ", capsys.readouterr().out, re.MULTILINE))
    assert float(left["digits with their pixels shuffled"]) > 5 * float(left["digits"])


def test_digits_neighbors_finds_what_the_exact_kernel_finds(demo, capsys):
    figures = digits_neighbors.main([str(demo[0]), "--examples=300", "--queries=200"])
    assert figures["error"] <= 2 * figures["bound"]  # of one seed; over seeds see test_projection
    assert figures["recall in NumPy"] == pytest.approx(figures["recall in FAISS"], abs=0.01)
    assert figures["recall in FAISS"] > 0.7
    assert abs(figures["accuracy of regression, features"] - figures["accuracy of regression, exact kernel"]) <= 0.04
    assert re.search(r"^recall@10 in FAISS +\d+\.\d%$", capsys.readouterr().out, re.MULTILINE)


def test_kernel_while_training_turns_towards_the_labels(capsys):
    rows = kernel_while_training.main(["--epochs=2", "--examples=100"])
    assert [row.epoch for row in rows] == [0, 1, 2]
    assert rows[0].change == pytest.approx(0, abs=1e-6)
    assert rows[0].loss > rows[1].loss > rows[2].loss
    assert rows[0].alignment + 0.05 < rows[1].alignment < rows[2].alignment
    assert min(row.change for row in rows[1:]) > 0.05
    assert len(re.findall(r"^ +[012] ", capsys.readouterr().out, re.MULTILINE)) == 3


def test_kernel_while_training_follows_the_model_itself():
    """After the last assignment the kernel is that of a fresh export: paths were mapped, and no variable missed."""
    from exporter.functionalize import functionalize
    from exporter.ntk.reference import reference_ntk

    class Kernels:
        """What `assign_weights` uses of a SavedModel."""

        def __init__(self, model):
            import tensorflow as tf

            functional = functionalize(model)
            self.params = {path: tf.Variable(value) for path, value in functional.trainable.items()}
            self.frozen = {path: tf.Variable(value) for path, value in functional.frozen.items()}

    model = kernel_while_training.build()
    kernels = Kernels(model)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.uniform(0.5, 1.0, variable.shape).astype(np.float32))
    kernel_while_training.assign_weights(kernels, model)
    functional = functionalize(model)
    x = (rng.standard_normal((3, 64)).astype(np.float32),)
    given = [{path: v.numpy() for path, v in part.items()} for part in (kernels.params, kernels.frozen)]
    np.testing.assert_array_equal(
        reference_ntk(functional.apply_fn, *given, x),
        reference_ntk(functional.apply_fn, functional.trainable, functional.frozen, x),
    )


def test_every_example_is_tested():
    names = {path.stem for path in Path(digits.__file__).parent.glob("*.py")} - {"__init__"}
    assert names == {
        "diabetes_intervals",  # in test_answers.py
        "digits",
        "digits_answers",
        "digits_neighbors",
        "digits_regression",
        "digits_train",
        "inside_tf_function",
        "kernel_while_training",
    }
