"""Which variables are trainable, frozen and excluded, and what they are called."""

import os
import subprocess
import sys

import models
import pytest

from exporter.errors import ExportError
from exporter.functionalize import functionalize


def test_frozen_layers_and_batch_statistics_are_frozen():
    functional = functionalize(models.by_id("frozen_layers").build())
    assert {path.rpartition("/")[2] for path in functional.frozen} == {
        "kernel",
        "bias",
        "moving_mean",
        "moving_variance",
    }
    assert not functional.excluded
    assert len(functional.trainable) == 4


def test_random_seeds_are_not_variables():
    functional = functionalize(models.by_id("batch_norm").build())
    assert not [path for path in (*functional.trainable, *functional.frozen) if "seed" in path]


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("*", {"kernel", "bias"}),
        ("*kernel", {"kernel"}),
        (["!*bias"], {"kernel"}),
        (["*", "!*/kernel"], {"bias"}),
        (["*bias", "*kernel"], {"kernel", "bias"}),
    ],
)
def test_patterns(patterns, kept):
    functional = functionalize(models.by_id("mlp").build(), trainable=patterns)
    assert {path.rpartition("/")[2] for path in functional.trainable} == kept
    assert {path.rpartition("/")[2] for path in functional.excluded} == {"kernel", "bias"} - kept
    assert functional.excluded == set(functional.frozen)


def test_patterns_cannot_thaw_a_frozen_layer():
    model = models.by_id("frozen_layers").build()
    with pytest.raises(ExportError, match="matches none"):
        functionalize(model, trainable=f"{model.layers[0].name}/kernel")


def test_paths_are_the_same_in_every_process():
    script = (
        "import models; from exporter.functionalize import functionalize\n"
        "for name in ('tf_module', 'keras2_gru', 'mlp'):\n"
        "    f = functionalize(models.by_id(name).build()); print(list(f.trainable), list(f.frozen), f.inputs)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=_environment(PYTHONHASHSEED=seed)
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second
    assert "'layers/0/w'" in first


def _environment(**variables):
    path = os.pathsep.join([os.path.dirname(models.__file__), os.getcwd()])
    return {**os.environ, "PYTHONPATH": path, **variables}
