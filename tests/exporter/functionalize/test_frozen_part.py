"""A frozen backbone under a new head: apart, so that it is computed once, and nothing else changes."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter.config import ExportConfig, FeaturesConfig, NtkConfig
from exporter.errors import ExportError
from exporter.export import explain, export_savedmodel
from exporter.functionalize import functionalize
from exporter.ntk.reference import reference_ntk
from serving.shared.exports import read_manifest

WIDE = 720  # 720 x 720 are more numbers than a small part may have


def backbone(head=4, *, given=32):
    """Images and words, of which a large part is frozen; a small part and the head are not."""
    keras.utils.set_random_seed(0)
    image, words = keras.Input((6, 6, 3), name="image"), keras.Input((5,), dtype="int64", name="words")
    x = keras.layers.DepthwiseConv2D(3, activation="tanh", name="conv")(image)
    x = keras.layers.Dense(WIDE, activation="tanh", name="first")(keras.layers.Flatten()(x))
    x = keras.layers.Dense(given, name="last")(keras.layers.Dense(WIDE, activation="tanh", name="second")(x))
    y = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(50, 8, name="embedding")(words))
    frozen = keras.Model([image, words], [x, y])
    frozen.trainable = False
    x, y = frozen([image, words])
    x = keras.layers.Dense(6, activation="tanh", name="joint")(keras.layers.Concatenate()([x, y]))
    return keras.Model([image, words], keras.layers.Dense(head, name="head")(x))


@keras.saving.register_keras_serializable()
class Token(keras.layers.Layer):
    """Puts a trained vector beside each example, as many as there are."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, shape[-1]))

    def call(self, x):
        return x + tf.tile(self.token, [tf.shape(x)[0], 1])


def tiled():
    frozen = keras.layers.Dense(WIDE, trainable=False)(
        keras.layers.Dense(WIDE, trainable=False)(x := keras.Input((9,)))
    )
    return keras.Model(x, keras.layers.Dense(2)(Token()(keras.layers.Dense(16, trainable=False)(frozen))))


def inputs(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6, 6, 3)).astype(np.float32), rng.integers(0, 50, (n, 5))


def apart(model, **options):
    return functionalize(model, frozen_apart=True, **options)


class TestSplit:
    def test_the_rest_begins_with_what_the_frozen_part_gives(self):
        model = apart(backbone())
        part = model.frozen_part
        assert model.trainable.keys() == {"joint/kernel", "joint/bias", "head/kernel", "head/bias"}
        assert not model.frozen
        assert model.all_frozen.keys() == part.variables.keys()
        assert [spec.shape for spec in model.inputs] == [(None, 40)]
        assert [spec.shape for spec in model.signature_inputs] == [(None, 6, 6, 3), (None, 5)]
        x = inputs(3)
        (given,) = part.apply_fn(part.variables, x)
        np.testing.assert_allclose(given, model.front.run(x)[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            model.apply_fn(model.trainable, model.frozen, model.behind_front(x)),
            model.original(x),
            rtol=1e-5,
            atol=1e-6,
        )
        assert part.flops_of_example > 2 * (48 * WIDE + WIDE**2)

    def test_variables_that_are_not_chosen_are_frozen_too(self):
        model = apart(backbone(), trainable="head/*")
        assert model.trainable.keys() == {"head/kernel", "head/bias"}
        assert model.excluded == {"joint/kernel", "joint/bias"} <= model.frozen_part.variables.keys()

    def test_weights_that_are_not_finite_are_refused_there_too(self):
        model = backbone()
        kernel = next(v for v in model.variables if v.path.endswith("second/kernel"))
        kernel.assign(kernel * np.nan)
        with pytest.raises(ExportError, match=r"received NaN or infinity in variable '.*second/kernel'"):
            apart(model)

    @pytest.mark.parametrize(
        "model",
        [
            lambda: backbone(given=5000),
            tiled,
            lambda: keras.Sequential(
                [keras.Input((9,)), keras.layers.Dense(8, trainable=False), keras.layers.Dense(2)]
            ),
            lambda: keras.Sequential(
                [keras.Input((9,)), keras.layers.Dense(WIDE), keras.layers.Dense(WIDE, trainable=False)]
            ),
        ],
        ids=["gives more than inputs", "its size is taken", "is small", "comes last"],
    )
    def test_that_is_not_worth_while(self, model):
        assert apart(model()).frozen_part is None

    def test_only_if_asked_for(self):
        assert functionalize(backbone()).frozen_part is None


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    export = ExportConfig(platforms=("cpu",), features=FeaturesConfig(dimensions=64))
    return export_savedmodel(backbone(), tmp_path_factory.mktemp("frozen"), NtkConfig(), export)


class TestExport:
    def test_is_of_the_whole_model(self, exported):
        """In blocks of the frozen part that others than the kernel's are filled with."""
        x1, x2 = inputs(70, 1), inputs(9, 2)
        model = functionalize(backbone())
        expected = reference_ntk(model.apply_fn, model.trainable, model.frozen, x1, x2, trace_axes=(1,))
        loaded = tf.saved_model.load(str(exported.path))
        for n in (0, 1, 8, 70):
            ntk = loaded.ntk([a[:n] for a in x1], list(x2))
            np.testing.assert_allclose(ntk, expected[:n], rtol=1e-4, atol=1e-5 * np.max(expected))
        doubled = {path: 2 * v for path, v in model.trainable.items()}
        given = loaded.ntk_with_params(list(x1), list(x2), doubled)
        expected = reference_ntk(model.apply_fn, doubled, model.frozen, x1, x2, trace_axes=(1,))
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5 * np.max(expected))
        np.testing.assert_allclose(loaded.forward(list(x1)), model.original(x1), rtol=1e-4, atol=1e-5)

    def test_manifest_and_explanation_name_all_frozen_variables(self, exported):
        manifest = read_manifest(exported.path)
        frozen = {path: list(v.shape) for path, v in functionalize(backbone()).frozen.items()}
        assert {path: v["shape"] for path, v in manifest["variables"]["frozen"].items()} == frozen
        text = str(explain(backbone(), NtkConfig(), ExportConfig(platforms=("cpu",))))
        assert f"{len(frozen)} variables" in text
        assert "once a request" in text

    def test_programs_are_all_reached_by_the_warmup(self, exported, tmp_path):
        script = (
            "import sys, pathlib, serving, numpy as np\n"
            "model = serving.load(sys.argv[1], warmup=True)\n"
            "count = lambda: len(list(pathlib.Path(sys.argv[2]).iterdir()))\n"
            "warm = count()\n"
            "for n in (1, 3, 8, 65, 100):\n"
            "    x = [np.zeros((n, 6, 6, 3), np.float32), np.zeros((n, 5), np.int64)]\n"
            "    model.ntk_symmetric(x), model.forward(x), model.ntk_features(x)\n"
            "print(warm, count())\n"
        )
        environment = {**os.environ, "TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={tmp_path}"}
        command = [sys.executable, "-c", script, str(exported.path), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        compiled = exported.manifest["programs"]["compiled"]
        assert done.stdout.split() == [str(compiled)] * 2
