"""Models that are exported once for all tests, each with a configuration of its own."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import preprocessing_models
import tensorflow as tf

from exporter.config import ExportConfig, NtkConfig
from exporter.export import ExportResult, export_savedmodel
from exporter.ntk.reference import reference_ntk
from exporter.ntk.reference_features import reference_features
from exporter.plan.planning import Plan, make_plan
from serving.shared.exports import MANIFEST

L = keras.layers


def tokens() -> keras.Model:
    """Integers to an embedding and attention."""
    x = keras.Input((6,), dtype="int32", name="tokens")
    y = L.Embedding(models.VOCABULARY, 4)(x)
    y = L.LayerNormalization()(y + L.MultiHeadAttention(2, 3)(y, y))
    model = keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(y)))
    models.randomize(model.variables)
    return model


def many_outputs() -> keras.Model:
    """So many that the kernel can be a sum over passes of some of them."""
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, "relu"), L.Dense(8, "tanh"), L.Dense(12)])
    models.randomize(model.variables)
    return model


def lstm() -> keras.Model:
    """A loop that reverse mode has to go through, of a length that the model leaves open."""
    model = keras.Sequential([keras.Input((None, 2)), L.LSTM(3), L.Dense(2)])
    models.randomize(model.variables)
    return model


class BatchMean(L.Layer):
    """Takes off the mean over the batch, which couples the examples."""

    def call(self, x: Any) -> Any:
        """x of shape (n, ...)."""
        return x - tf.reduce_mean(x, axis=0)


def coupled() -> keras.Model:
    """A model whose examples influence each other."""
    model = keras.Sequential([keras.Input((4,)), L.Dense(5, activation="tanh"), BatchMean(), L.Dense(2)])
    models.randomize(model.variables)
    return model


def zoo(model_id: str) -> Callable[[], Any]:
    """A model of the zoo."""
    return models.by_id(model_id).build


CPU = {"platforms": ("cpu",)}  # without which tests take longer
STRUCTURED = {"implementation": "structured_derivatives"}


def small(memory_budget: str, **options: Any) -> ExportConfig:
    """So little memory that there are programs of two sizes of blocks only, and tests need not compile more of them."""
    return ExportConfig(**{**CPU, "memory_budget": memory_budget, **options})


# "many_outputs" has all that a default export has: three sizes of blocks, tiles of several, passes for large requests.
# "cnn" has all sizes of blocks of another implementation, too.
EXPORTS: dict[str, tuple[Callable[[], Any], NtkConfig, ExportConfig]] = {
    "cnn": (zoo("residual"), NtkConfig(**STRUCTURED), ExportConfig(platforms=("cpu", "cuda", "tpu"))),
    "many_outputs": (many_outputs, NtkConfig(), ExportConfig(**CPU)),
    "tokens": (tokens, NtkConfig(), small("1MiB", signatures=("ntk", "forward"))),
    "two_inputs": (zoo("list_inputs"), NtkConfig(), small("32KiB", features={"dimensions": 256})),
    "lstm": (lstm, NtkConfig(), small("256KiB", signatures=("ntk", "forward"), input_shapes=(3,))),
    "module": (
        zoo("tf_module"),
        NtkConfig(**STRUCTURED),
        small("64KiB", signatures=("ntk_diagonal", "ntk_symmetric")),
    ),
    "coupled": (
        coupled,
        NtkConfig(vmap_axes=None),
        ExportConfig(signatures=("ntk", "ntk_symmetric", "ntk_diagonal"), **CPU),
    ),
    "all_axes": (
        zoo("spatial_output"),
        NtkConfig(trace_axes=(), diagonal_axes=(1,), **STRUCTURED),
        small(
            "1MiB", signatures=("ntk", "ntk_symmetric", "ntk_diagonal", "ntk_features"), features={"dimensions": 512}
        ),
    ),
    "float64": (
        zoo("batch_norm"),
        NtkConfig(precision="float64", **STRUCTURED),
        small("256KiB", signatures=("ntk", "forward"), verify={"rtol": 1e-12}),
    ),
}

# With operations in front of the kernel that stay TensorFlow; their inputs cannot be random numbers.
PREPROCESSED: dict[str, tuple[Callable[[], Any], NtkConfig, ExportConfig]] = {
    "sentences": (preprocessing_models.sentences, NtkConfig(), small("32KiB", features={"dimensions": 256})),
    "pictures": (
        preprocessing_models.decoding,
        NtkConfig(**STRUCTURED),
        small(
            "256KiB",
            signatures=("ntk_diagonal", "forward"),
            examples=preprocessing_models.pictures_file(),
            warmup=False,
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An export, and what it was made of."""

    name: str
    result: ExportResult
    model: Any
    configuration: tuple[NtkConfig, ExportConfig]

    @property
    def path(self) -> Path:
        """The version's directory."""
        return self.result.path

    @functools.cached_property
    def plan(self) -> Plan:
        """Of the same model, for those tests that ask for more than the export."""
        return make_plan(self.model, *self.configuration)

    @functools.cached_property
    def loaded(self) -> Any:
        """As a user loads it; shared by the tests, which leave its variables as they are."""
        return tf.saved_model.load(str(self.path))

    @property
    def rtol(self) -> float:
        """How close to the float64 reference it must be, relative to the largest entry."""
        return 1e-12 if self.configuration[0].precision == "float64" else 1e-5

    def inputs(self, n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
        """n random examples."""
        specs = [types.SimpleNamespace(**entry) for entry in self.result.manifest["inputs"]]
        return models.random_inputs(specs, n, seed)

    def argument(self, x: tuple[np.ndarray, ...]) -> Any:
        """Examples as the methods take them."""
        return x[0] if len(x) == 1 else list(x)

    def reference(self, x1: Any, x2: Any = None, *, params: Any = None, frozen: Any = None) -> np.ndarray:
        """The kernel in float64."""
        model = self.plan.model
        params, frozen = ({**old, **(new or {})} for old, new in ((model.trainable, params), (model.frozen, frozen)))
        with self.plan.tracing():
            return reference_ntk(model.apply_fn, params, frozen, x1, x2, coupled=self.plan.coupled, **self.plan.axes)

    def reference_features(self, x: Any) -> np.ndarray:
        """The features in float64."""
        model, sketch = self.plan.model, self.plan.sketch
        axes = self.plan.ntk.trace_axes
        return reference_features(model.apply_fn, model.trainable, model.frozen, x, sketch, trace_axes=axes)

    def assert_close(self, value: Any, expected: np.ndarray) -> None:
        """Equal shapes, and a difference of at most `rtol` of the largest expected entry."""
        value = np.asarray(value)
        assert value.shape == expected.shape
        if value.size:
            np.testing.assert_array_less(np.max(np.abs(value - expected)) / np.max(np.abs(expected)), self.rtol)


def export(name: str, directory: Path) -> Exported:
    """Exports one of EXPORTS or PREPROCESSED below `directory`, unless another process of the tests has done so."""
    build, ntk, config = {**EXPORTS, **PREPROCESSED}[name]
    keras.utils.clear_session(free_memory=False)  # so that variables have the same names in all processes
    model = build()
    base_dir = directory / name
    with open(directory / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base_dir.exists():
            return Exported(name, export_savedmodel(model, base_dir, ntk, config), model, (ntk, config))
    path = base_dir / "1"
    return Exported(name, ExportResult(path, json.loads((path / MANIFEST).read_text())), model, (ntk, config))
