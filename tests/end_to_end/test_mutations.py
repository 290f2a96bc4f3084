"""What is wrong with a graph, a schedule or a signature is caught by the verification of the export, within 10 s."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from exporter import ExportConfig, ExportError, NtkConfig, export_savedmodel
from exporter.artefact import oracle
from exporter.graph import kernel_module, serve_graph
from exporter.ntk.layerwise.outputs import OutputAxes


def config(*signatures):
    verify = {"examples": 5, "seconds": 10}
    return ExportConfig(platforms="cpu", signatures=signatures, warmup=False, verify=verify, memory_budget="16KiB")


def model():
    """So wide that features outgrow the budget, and requests are made of several tiles."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), L.Dense(16, activation="tanh"), L.Dense(3)], name="mlp")


def below_the_diagonal(monkeypatch):
    """Tiles below the diagonal of a symmetric kernel that are not mirrored."""
    monkeypatch.setattr(serve_graph.Kernel, "_tiled_symmetric", _not_mirrored(serve_graph.Kernel._tiled_symmetric))


def _not_mirrored(right):
    def tiled(self, variables, x):
        kernel = right(self, variables, x)
        return tf.linalg.band_part(kernel, 0, -1)

    return tiled


def padding(monkeypatch):
    """Blocks filled up with ones, whose rows are not cut from the right end."""
    monkeypatch.setattr(serve_graph, "_join", lambda tiles, rows, columns: _join(tiles[::-1], rows, columns))


_join = serve_graph._join


def one_tile_less(monkeypatch):
    """A loop over tiles that forgets the last."""
    loop = serve_graph._loop
    monkeypatch.setattr(
        serve_graph, "_loop", lambda count, body, state, **step: loop(tf.maximum(1, count - 1), body, state, **step)
    )


def average(monkeypatch):
    """A trace that is summed instead of averaged."""
    right = OutputAxes.arrange
    monkeypatch.setattr(OutputAxes, "arrange", lambda self, kernel, other: self.traced * right(self, kernel, other))


def exchanged(monkeypatch):
    """A signature whose two sides are exchanged."""
    right = kernel_module.KernelModule._core

    def core(self, name, compute, names):
        if name == "ntk":
            return right(self, name, lambda params, frozen, x1, x2: compute(params, frozen, x2, x1), names)
        return right(self, name, compute, names)

    monkeypatch.setattr(kernel_module.KernelModule, "_core", core)


def own_params(monkeypatch):
    """`ntk_with_params` that takes the module's own variables."""
    right = kernel_module.KernelModule._core

    def core(self, name, compute, names):
        def with_own(params, frozen, *sides):
            return compute({path: v.read_value() for path, v in self.params.items()}, frozen, *sides)

        return right(self, name, with_own if name == "ntk_with_params" else compute, names)

    monkeypatch.setattr(kernel_module.KernelModule, "_core", core)


@pytest.mark.parametrize(
    ("mutate", "signature"),
    [
        (below_the_diagonal, "ntk_symmetric"),
        (padding, "ntk"),
        (one_tile_less, "ntk"),
        (average, "ntk_diagonal"),
        (exchanged, "ntk"),
        (own_params, "ntk_with_params"),
    ],
)
def test_wrong_artefact_is_not_published(mutate, signature, monkeypatch, tmp_path):
    mutate(monkeypatch)
    with pytest.raises(ExportError, match="Verification failed"):
        export_savedmodel(model(), tmp_path / "base", NtkConfig(), config(signature))
    assert not (tmp_path / "base").exists()


def test_own_params_of_a_large_model(monkeypatch, tmp_path):
    """Of which kernels at no other parameters are computed: where it may read variables, they are not numbers."""
    monkeypatch.setattr(oracle, "affordable", lambda *_, **__: (False, 2))
    export_savedmodel(model(), tmp_path / "right", NtkConfig(), config("ntk", "ntk_with_params"))
    own_params(monkeypatch)
    with pytest.raises(ExportError, match="expected signature ntk_with_params within"):
        export_savedmodel(model(), tmp_path / "wrong", NtkConfig(), config("ntk", "ntk_with_params"))


def test_right_artefact_is_published(tmp_path):
    """As the version after the last."""
    base_dir = tmp_path / "models" / "mlp"
    (base_dir / "3").mkdir(parents=True)
    result = export_savedmodel(model(), str(base_dir), NtkConfig(), config("ntk", "ntk_symmetric"))
    assert result.path == base_dir / "4"
    assert (result.path / "saved_model.pb").is_file()
    assert os.listdir(tmp_path / "models") == ["mlp"]
    assert sorted(os.listdir(base_dir)) == ["3", "4"]
    verification = result.manifest["verification"]
    assert max(verification["errors"].values()) < 1e-5
    assert np.isfinite(verification["smallest_eigenvalue"])
