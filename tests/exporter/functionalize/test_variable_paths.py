"""Variables have the same paths in memory as in the model's files, those that Keras gives when it loads one."""

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from exporter.errors import ExportError
from exporter.functionalize import functionalize
from exporter.functionalize.tracing import trace
from exporter.functionalize.variable_paths import variable_paths

L = keras.layers
register = keras.saving.register_keras_serializable("test_variable_paths")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


@register
class Makes(keras.Model):
    """Makes its layers itself, one of them a model."""

    def __init__(self, name="makes", **kwargs):
        super().__init__(name=name, **kwargs)
        self.body = L.Dense(5, name="body")
        self.blocks = [keras.Sequential([L.Dense(3, name="in")], name=f"block_{i}") for i in range(2)]

    def call(self, x):
        x = self.body(x)
        for block in self.blocks:
            x = block(x)
        return x

    def get_config(self):
        return {"name": self.name}


@register
class MakesInBuild(keras.Model):
    """Builds its layers in its own `build`, and has a weight of its own."""

    def __init__(self, name="makes_in_build", **kwargs):
        super().__init__(name=name, **kwargs)
        self.body = L.Dense(5, name="body")

    def build(self, shape):
        self.scale = self.add_weight(shape=(), name="scale")
        self.body.build(shape)

    def call(self, x):
        return self.scale * self.body(x)

    def get_config(self):
        return {"name": self.name}


@register
class Holds(keras.Model):
    """Holds a model in its configuration, and makes a layer itself."""

    def __init__(self, encoder, name="holds", **kwargs):
        super().__init__(name=name, **kwargs)
        self.encoder, self.top = encoder, L.Dense(2, name="top")

    def call(self, x):
        return self.top(self.encoder(x))

    def get_config(self):
        return {"name": self.name, "encoder": keras.saving.serialize_keras_object(self.encoder)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("encoder")), **config)


@register
class Composite(L.Layer):
    """A layer of layers with a weight of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = L.Dense(5, name="body")
        self.inner = keras.Sequential([L.Dense(4, name="in")], name="inner")

    def build(self, shape):
        self.scale = self.add_weight(shape=(), name="scale")
        self.body.build(shape)
        self.inner.build((None, 5))

    def call(self, x):
        return self.scale * self.inner(self.body(x))

    def get_config(self):
        return super().get_config()


def _sequential(*layers, shape=(6,), name="net"):
    return keras.Sequential([keras.Input(shape), *layers], name=name)


def _functional(*layers, shape=(6,), name="net"):
    x = y = keras.Input(shape)
    for layer in layers:
        y = layer(y)
    return keras.Model(x, y, name=name)


def _called(model):
    model(np.zeros((1, 6), np.float32))
    return model


def _dense(*names):
    return [L.Dense(3, name=name) for name in names]


def _renamed(model):
    model.layers[-1].name = "renamed"
    return model


def _of_another_model():
    """A layer that was built in another model."""
    body = _sequential(*_dense("body")).layers[0]
    return _functional(body, *_dense("head"), name="other")


def _extended():
    model = _sequential(*_dense("body"))
    model.add(L.Dense(2, name="head"))
    return model


def _frozen_backbone():
    backbone = _functional(L.Conv2D(2, 3, name="conv"), L.BatchNormalization(name="norm"), shape=(6, 6, 1), name="back")
    backbone.trainable = False
    return _sequential(backbone, L.Flatten(), *_dense("head"), shape=(6, 6, 1))


MODELS = {
    "sequential": lambda: _sequential(*_dense("body", "head")),
    "sequential built by a call": lambda: _called(keras.Sequential(_dense("body", "head"), name="net")),
    "sequential that was extended": _extended,
    "functional": lambda: _functional(*_dense("body", "head")),
    "functional in functional": lambda: _functional(_functional(*_dense("body"), name="inner"), *_dense("head")),
    "functional in sequential": lambda: _sequential(_functional(*_dense("body"), name="inner"), *_dense("head")),
    "sequential in functional": lambda: _functional(_sequential(*_dense("body"), name="inner"), *_dense("head")),
    "sequential in sequential": lambda: _sequential(keras.Sequential(_dense("body"), name="inner"), *_dense("head")),
    "three deep": lambda: _sequential(
        keras.Sequential([keras.Sequential(_dense("body"), name="first"), *_dense("middle")], name="second"),
        *_dense("head"),
    ),
    "frozen backbone": _frozen_backbone,
    "renamed": lambda: _renamed(_functional(*_dense("body", "head"))),
    "renamed in sequential": lambda: _renamed(_sequential(*_dense("body", "head"))),
    "layer of another model": _of_another_model,
    "attention": lambda: _functional(L.Reshape((2, 3)), L.Dense(4, name="body"), _SelfAttention(name="self")),
    "wrappers": lambda: _sequential(
        L.Reshape((2, 3)),
        L.TimeDistributed(L.Dense(4, name="body"), name="each"),
        L.Bidirectional(L.LSTM(3, return_sequences=True, name="lstm"), name="both"),
        L.RNN([L.LSTMCell(2, name="first"), L.GRUCell(2, name="second")], name="stacked"),
        L.SpectralNormalization(L.Dense(2, name="head"), name="spectral"),
    ),
    "subclassed": lambda: _called(Makes()),
    "subclassed with a weight": lambda: _called(MakesInBuild()),
    "subclassed in functional": lambda: _functional(Makes(), *_dense("head")),
    "subclassed in sequential": lambda: _sequential(Makes(), *_dense("head")),
    "subclassed that holds": lambda: _called(Holds(keras.Sequential(_dense("body"), name="encoder"))),
    "composite layer": lambda: _sequential(Composite(name="block"), *_dense("head")),
}


@register
class _SelfAttention(L.Layer):
    """Attention of x to itself."""

    def build(self, shape):
        self.attention = L.MultiHeadAttention(2, 2, name="attention")
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


def _paths(model):
    return [path for path, _ in variable_paths(model) if "seed" not in path]


@pytest.mark.parametrize("case", MODELS)
def test_of_a_model_are_those_of_its_file(tmp_path, case):
    model = MODELS[case]()
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    assert _paths(model) == _paths(loaded)
    if case != "subclassed with a weight":  # Keras has the model's name in paths where it has its own `build`
        assert _paths(loaded) == [v.path for v in loaded.variables if "seed" not in v.path]
    assert len(set(_paths(model))) == len(_paths(model))


@pytest.mark.parametrize("case", ["sequential", "sequential in functional", "three deep", "wrappers", "renamed"])
def test_of_a_model_are_those_of_its_h5_file(tmp_path, case):
    model = MODELS[case]()
    model.save(tmp_path / "m.h5")
    assert _paths(model) == _paths(keras.saving.load_model(tmp_path / "m.h5", compile=False))


def test_of_some_models():
    assert set(_paths(MODELS["three deep"]())) == {f"{n}/{v}" for n in ("body", "middle", "head") for v in _KIND}
    subclassed = _paths(MODELS["subclassed"]())
    assert set(subclassed) == {f"{n}/{v}" for n in ("body", "block_0/in", "block_1/in") for v in _KIND}
    assert _paths(MODELS["composite layer"]())[:1] == ["block/scale"]


_KIND = ("kernel", "bias")


def test_stay_unique(tmp_path):
    """Two models with layers of the same names, as of two towers."""
    x = keras.Input((6,))
    model = keras.Model(x, L.Add()([_sequential(*_dense("body"), name=name)(x) for name in ("left", "right")]))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    expected = ["body/kernel", "body/bias", "body/kernel_1", "body/bias_1"]
    for one in (model, loaded):
        assert [v.path for v in trace(one).variables] == expected
        assert sorted(functionalize(one).trainable) == sorted(expected)
    values = [functionalize(one).trainable["body/kernel_1"] for one in (model, loaded)]
    np.testing.assert_array_equal(*values)


def test_of_layers_without_a_configuration():
    class Silent(L.Layer):
        def __init__(self, units):
            super().__init__(name="silent")
            self.inner = keras.Sequential([L.Dense(units, name="in")], name="inner")

        def call(self, x):
            return self.inner(x)

    assert _paths(_sequential(Silent(2)))[:2] == ["silent/inner/in/kernel", "silent/inner/in/bias"]


def test_patterns_name_the_nearest_path():
    model = MODELS["sequential"]()
    assert set(functionalize(model, trainable=["head/*"]).trainable) == {"head/kernel", "head/bias"}
    with pytest.raises(ExportError, match=r"'net/head/\*' matches none .nearest path: 'head/"):
        functionalize(model, trainable=["net/head/*"])


def _keras_2_models():
    layers = tf_keras.layers
    sequential = tf_keras.Sequential([tf_keras.Input((6,)), layers.Dense(3, name="body")], name="inner")
    x = tf_keras.Input((6,))
    yield sequential
    yield tf_keras.Model(x, layers.Dense(2, name="head")(sequential(x)), name="net")


@pytest.mark.parametrize("file", ["m.keras", "m.h5"])
def test_of_keras_2_are_those_of_its_files(tmp_path, file):
    for model in _keras_2_models():
        model.save(tmp_path / file)
        loaded = tf_keras.models.load_model(tmp_path / file, compile=False)
        assert list(functionalize(model).trainable) == list(functionalize(loaded).trainable)


def test_of_the_zoo_have_the_values_of_the_variables():
    for name in ("nested", "shared_layers", "batch_norm", "bidirectional"):
        model = models.by_id(name).build()
        for path, variable in variable_paths(model):
            assert path.rpartition("/")[2] == variable.name
            assert isinstance(variable.value, tf.Variable)
