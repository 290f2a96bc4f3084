"""Loading: every kind of model that `--model` may name, and the message of every one that cannot be loaded."""

import json
import os
import sys
import textwrap
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from exporter.errors import ExportError
from exporter.load import load_model, locate_model

# Keras 3.15 and TensorFlow 2.21 with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

X = np.arange(8, dtype=np.float32).reshape(2, 4) / 8


def named_function(x):
    return 2 * x


class Plain3(keras.layers.Dense):
    """A custom layer that is not registered."""


class Plain2(tf_keras.layers.Dense):
    """A custom layer of Keras 2 that is not registered."""


def model_3(*layers):
    return keras.Sequential([keras.Input((4,)), *(layers or [keras.layers.Dense(3)])])


def model_2(*layers):
    return tf_keras.Sequential([tf_keras.Input((4,)), *(layers or [tf_keras.layers.Dense(3)])])


def save(model, path):
    """Saves a model, without the warning of Keras 2 that HDF5 is a legacy format; returns the path as text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file", UserWarning)
        model.save(path)
    return str(path)


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.ones((4, 3)))
        self.bias = tf.Variable(tf.ones(3), trainable=False)

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        return x @ self.kernel + self.bias

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def features(self, x):
        return x @ self.kernel


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """The working directory is an empty one, and what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def message_of(spec, **options):
    with pytest.raises(ExportError) as caught:
        load_model(str(spec), **options)
    return str(caught.value)


class TestKerasFiles:
    @pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
    def test_keras_3(self, tmp_path, suffix):
        model = model_3()
        loaded = load_model(save(model, tmp_path / f"model{suffix}"))
        assert isinstance(loaded, keras.Model)
        np.testing.assert_array_equal(loaded(X), model(X))

    @pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
    def test_keras_2(self, tmp_path, suffix):
        model = model_2()
        loaded = load_model(save(model, tmp_path / f"model{suffix}"))
        assert isinstance(loaded, tf_keras.Model)
        np.testing.assert_array_equal(loaded(X), model(X))

    def test_custom_losses_do_not_matter(self, tmp_path):
        model = model_3()
        model.compile("sgd", loss=named_function)
        assert isinstance(load_model(save(model, tmp_path / "model.keras")), keras.Model)

    def test_home_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        save(model_3(), tmp_path / "model.keras")
        assert isinstance(load_model("~/model.keras"), keras.Model)

    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    @pytest.mark.parametrize("library", [keras, tf_keras])
    def test_lambda_is_refused_in_safe_mode_only(self, tmp_path, library, suffix):
        layer = library.layers.Lambda(lambda x: 2 * x, name="double")
        path = save((model_3 if library is keras else model_2)(layer), tmp_path / f"model{suffix}")
        message = message_of(path)
        assert "holds Python code in the Lambda layer 'double', which safe mode does not run" in message
        assert "if you trust the file, add --nosafe_mode" in message
        np.testing.assert_array_equal(load_model(path, safe_mode=False)(X), 2 * X)

    def test_lambda_inside_of_nested_models_is_found(self, tmp_path):
        inner = model_3(keras.layers.Lambda(lambda x: 2 * x, name="double"))
        wrapped = keras.layers.TimeDistributed(keras.layers.Lambda(lambda x: x + 1, name="add"))
        model = keras.Sequential([keras.Input((5, 4)), wrapped, keras.layers.TimeDistributed(inner)])
        assert "in the Lambda layers 'add', 'double'" in message_of(save(model, tmp_path / "model.keras"))

    def test_lambda_of_a_known_function_is_no_code(self, tmp_path):
        model = model_3(keras.layers.Lambda(keras.activations.relu))
        assert isinstance(load_model(save(model, tmp_path / "model.keras")), keras.Model)

    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("Plain3", lambda: model_3(Plain3(3))),
            ("Plain2", lambda: model_2(Plain2(3))),
            ("named_function", lambda: model_3(keras.layers.Dense(3, activation=named_function))),
            ("named_function", lambda: model_2(tf_keras.layers.Dense(3, activation=named_function))),
        ],
    )
    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    def test_custom_object_is_named(self, tmp_path, suffix, name, make):
        message = message_of(save(make(), tmp_path / f"model{suffix}"))
        assert f"needs the custom object {name!r}, which is not known here" in message
        assert "--model=package.module:callable" in message
        assert len(message) < 400

    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    def test_registered_custom_object_is_loaded(self, tmp_path, suffix):
        @keras.saving.register_keras_serializable("test_load")
        class Registered(keras.layers.Dense):
            pass

        assert isinstance(load_model(save(model_3(Registered(3)), tmp_path / f"model{suffix}")), keras.Model)

    @pytest.mark.parametrize("size", [0, 10, 1000, -100])
    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    def test_truncated(self, tmp_path, suffix, size):
        path = tmp_path / f"model{suffix}"
        save(model_3(), path)
        path.write_bytes(path.read_bytes()[:size])
        assert "is truncated, damaged, or no" in message_of(path)

    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    def test_text(self, tmp_path, suffix):
        path = tmp_path / f"model{suffix}"
        path.write_text("not a model\n" * 1000)
        assert "is truncated, damaged, or no" in message_of(path)

    def test_damaged_weights(self, tmp_path):
        path = tmp_path / "model.keras"
        save(model_3(), path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data[:1000] if name.endswith(".h5") else data)
        message = message_of(path)
        assert "written by Keras 3" in message
        assert "cannot be loaded: " in message

    def test_zip_that_is_no_keras_archive(self, tmp_path):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights.npz", b"")
        assert "no Keras archive: it has no config.json and no metadata.json" in message_of(path)

    @pytest.mark.parametrize("metadata", ["{}", "[]", "no json", '{"keras_version": "three"}'])
    def test_wrong_metadata(self, tmp_path, metadata):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps({"class_name": "Sequential"}))
            archive.writestr("metadata.json", metadata)
        assert "is truncated, damaged, or no Keras archive" in message_of(path)

    def test_weights_only(self, tmp_path):
        path = tmp_path / "model.weights.h5"
        model_3().save_weights(path)
        message = message_of(path)
        assert "holds weights only: expected a whole model" in message
        path = tmp_path / "weights.h5"
        model_2().save_weights(path)
        assert "holds weights only: expected a whole model" in message_of(path)

    def test_keras_2_file_cannot_have_a_module_imported(self, in_tmp_path):
        (in_tmp_path / "harm.py").write_text("raise KeyboardInterrupt('imported')")
        path = in_tmp_path / "model.keras"
        save(model_2(), path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        function = {"module": "harm", "class_name": "function", "config": "run", "registered_name": "run"}
        config = json.loads(parts["config.json"])
        config["config"]["layers"][1]["config"]["activation"] = function
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, json.dumps(config) if name == "config.json" else data)
        assert "needs the custom object 'run', which is not known here" in message_of(path)


class TestPaths:
    def test_missing_file_names_the_nearest(self, tmp_path):
        (tmp_path / "model.keras").touch()
        message = message_of(tmp_path / "modle.keras")
        assert message == f"there is no model '{tmp_path}/modle.keras'; did you mean '{tmp_path}/model.keras'?"

    def test_missing_file_with_nothing_near(self, in_tmp_path):
        message = message_of("model.keras")
        assert message.startswith("there is no model 'model.keras'; expected a .keras file, an .h5 file, a SavedModel")

    def test_missing_directory(self, tmp_path):
        path = tmp_path / "models" / "model.keras"
        assert f"the directory '{tmp_path}/models' does not exist" in message_of(path)

    @pytest.mark.parametrize("name", ["model.pt", "model.tflite", "model"])
    def test_other_kinds_of_file(self, tmp_path, name):
        path = tmp_path / name
        path.touch()
        assert f"cannot load the file '{path}': expected a .keras file" in message_of(path)

    def test_file_of_a_saved_model_names_its_directory(self, tmp_path):
        path = tmp_path / "saved_model.pb"
        path.touch()
        assert message_of(path).endswith(f"name its directory, '{tmp_path}'")

    def test_unreadable_file(self, tmp_path, monkeypatch):
        path = tmp_path / "model.keras"
        path.touch()
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
        assert message_of(path).endswith("no permission; make the file readable for this user")


class TestSavedModels:
    def test_object_that_can_be_called(self, tmp_path):
        model = model_2()
        model.save(tmp_path / "model", save_format="tf")
        loaded = load_model(str(tmp_path / "model"))
        np.testing.assert_array_equal(loaded(X), model(X))

    def test_keras_export(self, tmp_path):
        model = model_3()
        model.export(tmp_path / "model", verbose=False)
        loaded = load_model(str(tmp_path / "model"))
        np.testing.assert_allclose(loaded.serve(X), model(X), rtol=1e-6)
        loaded = load_model(f"{tmp_path}/model:serve")
        np.testing.assert_allclose(loaded.__call__(X), model(X), rtol=1e-6)

    @pytest.mark.parametrize("function", ["__call__", "features"])
    def test_function(self, tmp_path, function):
        module = Module()
        tf.saved_model.save(module, str(tmp_path / "model"))
        loaded = load_model(f"{tmp_path}/model:{function}")
        np.testing.assert_array_equal(loaded(X), getattr(module, function)(X))
        np.testing.assert_array_equal(loaded.kernel, module.kernel)

    def test_signature(self, tmp_path):
        module = Module()
        tf.saved_model.save(module, str(tmp_path / "model"), {"other": module.features})
        loaded = load_model(f"{tmp_path}/model:other")
        np.testing.assert_array_equal(loaded.__call__(x=tf.constant(X))["output_0"], module.features(X))

    def test_function_that_does_not_exist(self, tmp_path):
        tf.saved_model.save(Module(), str(tmp_path / "model"))
        assert message_of(f"{tmp_path}/model:feature").endswith(
            "model' has no function 'feature'; did you mean 'features'?"
        )
        assert message_of(f"{tmp_path}/model:xyz").endswith("no function 'xyz'; it has __call__, features")

    def test_object_that_cannot_be_called(self, tmp_path):
        module = tf.Module()
        module.first = tf.function(lambda x: x, input_signature=[tf.TensorSpec((None, 4))])
        module.second = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec((None, 4))])
        tf.saved_model.save(module, str(tmp_path / "two"))
        assert message_of(f"{tmp_path}/two").endswith("name one of its functions as DIR:function; it has first, second")
        tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
        assert message_of(f"{tmp_path}/none").endswith("it has none")

    def test_only_function(self, tmp_path):
        module = tf.Module()
        signature = tf.function(lambda x: 3 * x, input_signature=[tf.TensorSpec((None, 4))])
        tf.saved_model.save(module, str(tmp_path / "model"), {"only": signature})
        loaded = load_model(f"{tmp_path}/model")
        np.testing.assert_array_equal(loaded.__call__(x=tf.constant(X))["output_0"], 3 * X)

    def test_directory_without_a_saved_model(self, tmp_path):
        message = message_of(tmp_path)
        assert f"the directory '{tmp_path}' is no SavedModel: expected a file saved_model.pb in it" in message

    def test_model_base_directory_names_the_newest_version(self, tmp_path):
        for version in ("9", "10"):
            (tmp_path / version).mkdir()
            (tmp_path / version / "saved_model.pb").touch()
        assert message_of(f"{tmp_path}").endswith(f"did you mean '{tmp_path}/10'?")

    def test_damaged(self, tmp_path):
        (tmp_path / "saved_model.pb").write_bytes(b"not a protocol buffer")
        assert f"the SavedModel '{tmp_path}' cannot be loaded: " in message_of(tmp_path)


SOURCE = """
    import keras, tensorflow as tf, tf_keras

    class Module(tf.Module):
        pass

    @tf.function(input_signature=[tf.TensorSpec((3,)), tf.TensorSpec((None, 3))])
    def function(params, x):
        return x * params

    class Factory:
        @staticmethod
        def build():
            return Module()

    instance = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    constant = 3

    def keras_3(): return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    def keras_2(): return tf_keras.Sequential([tf_keras.layers.Dense(3)])
    def module(): return Module()
    def tf_function(): return function
    def pair(): return function, tf.ones(3)
    def optional(size=3): return Module()
    def needs(size): return Module()
    def nothing(): pass
    def text(): return "model"
    def triple(): return function, 1, 2
    def fails(): return {}["weights"]
    def leaves(): raise SystemExit(3)
"""


class TestCallables:
    @pytest.fixture(autouse=True)
    def _source(self, in_tmp_path):
        (in_tmp_path / "zoo.py").write_text(textwrap.dedent(SOURCE))
        (in_tmp_path / "package").mkdir()
        (in_tmp_path / "package" / "__init__.py").touch()
        (in_tmp_path / "package" / "models.py").write_text("from zoo import keras_3 as build\n")
        (in_tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script')\n")
        (in_tmp_path / "broken.py").write_text("import a_library_that_is_not_here\n")
        (in_tmp_path / "wrong.py").write_text("def build(:\n")

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("zoo:keras_3", keras.Model),
            ("zoo:keras_2", tf_keras.Model),
            ("zoo:module", tf.Module),
            ("zoo:optional", tf.Module),
            ("zoo:Module", tf.Module),
            ("zoo:Factory.build", tf.Module),
            ("zoo:instance", keras.Model),
            ("zoo:tf_function", tf.types.experimental.PolymorphicFunction),
            ("zoo:function", tf.types.experimental.PolymorphicFunction),
            ("zoo:pair", tuple),
            ("package.models:build", keras.Model),
        ],
    )
    def test_what_may_be_returned(self, name, kind):
        assert isinstance(load_model(name), kind)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("zo:keras_3", "there is no module 'zo' in "),
            ("zo:keras_3", "; did you mean 'zoo'?"),
            ("package.model:build", "there is no module 'package.model'; did you mean 'models'?"),
            ("pakage.models:build", "there is no module 'pakage' (of pakage.models) in "),
            ("zoo.models:build", "there is no module 'zoo.models'"),
            ("zoo:keras3", "zoo has no attribute 'keras3'; did you mean 'keras_3'?"),
            ("zoo:Factory.bild", "Factory has no attribute 'bild'; did you mean 'build'?"),
            ("zoo:constant", "zoo:constant is not callable: expected a function that returns a Keras model"),
            ("zoo:needs", "zoo:needs cannot be called without arguments: missing a required argument: 'size'"),
            ("zoo:nothing", "zoo:nothing returned None: expected a Keras model, a tf.Module, a tf.function, or a pair"),
            ("zoo:text", "zoo:text returned builtins.str: expected"),
            ("zoo:triple", "zoo:triple returned builtins.tuple: expected"),
            ("zoo:fails", "zoo:fails failed: KeyError: 'weights' ("),
            ("zoo:fails", "zoo.py, line 29)"),
            ("zoo:leaves", "zoo:leaves failed: SystemExit: 3"),
            ("script:build", "importing script failed: SystemExit: usage: script ("),
            (
                "broken:build",
                "importing broken failed: ModuleNotFoundError: No module named 'a_library_that_is_not_here'",
            ),
            ("wrong:build", "importing wrong failed: SyntaxError: "),
        ],
    )
    def test_message(self, name, message):
        assert message in message_of(name)

    def test_keyboard_interrupt_passes_through(self, in_tmp_path):
        (in_tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt\n")
        with pytest.raises(KeyboardInterrupt):
            load_model("interrupted:build")

    def test_locating_runs_no_code(self, in_tmp_path):
        locate_model("script:build")
        locate_model("package.model:build")
        with pytest.raises(ExportError, match="there is no module 'nowhere'"):
            locate_model("nowhere:build")


@pytest.mark.parametrize("spec", [":", "zoo:", ":build", "a b:c", "1zoo:build", "a.keras:b"])
def test_what_can_name_no_model(in_tmp_path, spec):
    assert "expected a .keras file" in message_of(spec)
