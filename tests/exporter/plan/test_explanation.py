"""What `--explain` shows: in at most 100 columns, in colour on a terminal."""

import io
import re

import keras
import models
import pytest

from exporter.config import ExportConfig, NtkConfig
from exporter.export import explain
from exporter.ntk.layerwise.costs import SiteCost
from exporter.plan.explanation import _SHORT, WIDTH, _aligned, _broken
from serving.shared.terminal import console_of

# Keras 3.15 and TensorFlow 2.21 with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

TITLES = r"^variable +primitive +rule +form +T +I +J +GFLOP +MiB +share$"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def long_names():
    keras.utils.set_random_seed(0)
    name = "a_block_of_layers_with_a_name_that_is_longer_than_others"
    layers = [keras.layers.Conv2D(64, 3, name=name), keras.layers.BatchNormalization(name=f"{name}_2")]
    return keras.Sequential(
        [keras.Input((40, 40, 32), name=f"{name}_input"), *layers, keras.layers.Flatten(), keras.layers.Dense(2)]
    )


MODELS = {
    "long_names": long_names,
    **{name: models.by_id(name).build for name in ("mlp", "conv_lstm", "dict_outputs")},
}
CONFIG = ExportConfig(signatures=("ntk", "ntk_with_params"), platforms=("cpu",))


@pytest.fixture(scope="module")
def explained():
    known = {}

    def of(name):
        known[name] = known.get(name) or explain(MODELS[name](), *ARGUMENTS.get(name, (None, CONFIG)))
        return known[name]

    return of


ARGUMENTS = {"mlp": (None, None), "dict_outputs": (NtkConfig(output="score"), CONFIG)}


@pytest.mark.parametrize("name", MODELS)
def test_width(explained, name):
    text = str(explained(name))
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    assert "\x1b" not in text
    assert re.search(TITLES, text, re.MULTILINE)
    assert not re.search(" $", text, re.MULTILINE)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_lost(explained, name):
    explanation = explained(name)
    squeezed = re.sub(r"\s", "", str(explanation))
    for title, text in explanation.plan.rows():
        assert re.sub(r"\s", "", title + text) in squeezed
    costs = explanation.choice.schedule.parts.costs()
    words = {word for cost in costs for word in (cost.rule, _SHORT.get(cost.primitive, cost.primitive))}
    assert all(word in squeezed for word in words)
    table = str(explanation).partition("variable ")[2].splitlines()
    assert sum(line.endswith("%") for line in table) == len(costs)
    assert table[-1].startswith("total ")


def test_a_table_that_fits_is_as_wide_as_it_is(explained):
    _, _, table = str(explained("mlp")).partition("variable ")
    assert re.search(r"^dense\w*/kernel +dot_general  dense  gram           1  6  8", table, re.MULTILINE)


def test_long_texts_go_on_below_themselves(explained):
    lines = str(explained("mlp")).splitlines()
    (k,) = (k for k, line in enumerate(lines) if line.startswith("features        features (n, 4096)"))
    assert lines[k + 1].startswith(" " * 16 + "WARNING: 4,096 numbers")


def test_narrow_and_coloured_on_a_terminal(explained, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console_of(stream, 80).print(explained("conv_lstm"))
    assert "\x1b[36mmodel" in stream.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert max(map(len, plain.splitlines())) <= 80
    wide = Terminal()
    console_of(wide, 200).print(explained("conv_lstm"))
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", wide.getvalue()).splitlines())) <= WIDTH


def test_large_numbers_fit():
    """Of a ResNet-50 on the largest images."""
    names = [f"conv{k}_block1_1_conv/kernel" for k in range(3)]
    cost = SiteCost((names[0],), "conv", "convolution", "explicit", (50176, 147, 2048), 0.0, 0.0, 0)
    row = (", ".join(names), cost.primitive, cost.rule, "row of pulled back, explicit", *map(str, cost.sizes))
    title = ("variable", "primitive", "rule", "form", "T", "I", "J", "GFLOP", "MiB", "share")
    text = io.StringIO()
    rows = [title, (*row, "1234.567", "1234.567", "99.9%"), ("total", *[""] * 6, "1234.567", "1234.567", "")]
    console_of(text, WIDTH).print(_aligned(rows, WIDTH))
    assert max(map(len, text.getvalue().splitlines())) <= WIDTH
    for part in ("1234.567", "50176", "2048", "99.9%", "pulled back,"):
        assert part in text.getvalue()


@pytest.mark.parametrize(
    ("path", "width", "lines"),
    [
        ("dense/kernel", 20, ["dense/kernel"]),
        ("dense/kernel", 8, ["dense/", "kernel"]),
        ("dense_layer/kernel, dense/bias", 16, ["dense_layer/", "kernel, dense/", "bias"]),
        ("unbreakable", 4, ["unbreakable"]),
    ],
)
def test_paths_are_broken_where_they_have_parts(path, width, lines):
    assert _broken(path, width).split("\n") == lines
