"""The callback in real calls of `fit`, of Keras 3 and of Keras 2."""

import copy
import logging
import math
import pathlib

import export_models
import keras
import numpy as np
import preprocessing_models
import pytest
import tensorflow as tf
import tf_keras

from exporter import ExportError, NtkConfig, export_savedmodel
from exporter.callbacks import NtkCallback
from exporter.functionalize.model_kinds import source_of
from exporter.monitor.kernel import KernelNow
from exporter.monitor.measurement import measure

KERAS = {"Keras 3": keras, "Keras 2": tf_keras}
NAMES = {"ntk_top_eigenvalue", "ntk_mean_diagonal", "ntk_effective_dimension", "ntk_change", "ntk_alignment"}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype(np.float32)
Y = np.argmax(X[:, :3], axis=1)


def perceptron(kind, name="perceptron"):
    """A model with BatchNorm, whose statistics the kernel depends upon."""
    L = kind.layers
    x = kind.Input((6,))
    y = L.BatchNormalization(momentum=0.8)(L.Dense(8, activation="tanh")(x))
    return compiled(kind, kind.Model(x, L.Dense(3)(y), name=name))


def compiled(kind, model, loss=None, **options):
    loss = loss or kind.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kind.optimizers.SGD(0.5), loss, **options)
    return model


def fit(model, callback, epochs=3, x=X, y=Y, **options):
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=[callback], **options).history


class Trained:
    """A model that was trained with the callback, and what came of it."""

    def __init__(self, kind, log_dir):
        kind.utils.set_random_seed(0)
        self.model, self.log_dir = perceptron(kind), log_dir
        self.start = self.model.get_weights()
        self.callback = NtkCallback(X, Y, log_dir=log_dir, examples=20, budget=None)
        self.history = fit(self.model, self.callback, epochs=4)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return {name: Trained(kind, tmp_path_factory.mktemp("logs")) for name, kind in KERAS.items()}


@pytest.fixture(params=KERAS)
def trained(request, both):
    return both[request.param]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "exporter")
    return lambda: [record.getMessage() for record in caplog.records]


# ----------------------------------------------------------------------------------------------------------- numbers


def test_history_has_every_epoch(trained):
    assert set(trained.history) >= NAMES
    for name in NAMES:
        assert len(trained.history[name]) == 4
        assert all(math.isfinite(value) for value in trained.history[name])
    assert [m.epochs for m in trained.callback.measurements] == [0, 1, 2, 3, 4]
    changes = [m.change for m in trained.callback.measurements]
    assert changes[0] == 0
    assert min(changes[1:]) > 0.05
    assert 0 < trained.history["ntk_alignment"][-1] < 1
    assert trained.history["ntk_alignment"][-1] > trained.callback.measurements[0].alignment


@pytest.fixture(scope="module")
def exported_kernel(both, tmp_path_factory):
    """kernel(x, weights) of an export of the Keras 3 model, with the weights of a model of either Keras assigned."""
    model = both["Keras 3"].model
    config = export_models.small("16KiB", signatures=("ntk_symmetric",), warmup=False, verify={"examples": 2})
    path = export_savedmodel(model, tmp_path_factory.mktemp("export"), export=config).path
    module = tf.saved_model.load(str(path))
    positions = {path.split(":")[0]: k for k, (path, _, _) in enumerate(source_of(model).variables)}

    def kernel(x, weights):
        for path, variable in {**module.params, **module.frozen}.items():
            variable.assign(weights[positions[path]])
        return module.ntk_symmetric(x).numpy()

    return kernel


def test_numbers_are_those_of_the_exported_savedmodel(trained, exported_kernel):
    callback, chosen = trained.callback, trained.callback.sample.indices
    start, kernel = (exported_kernel(X[chosen], weights) for weights in (trained.start, trained.model.get_weights()))
    np.testing.assert_allclose(callback.kernel, kernel, rtol=0, atol=1e-5 * np.abs(kernel).max())
    expected = measure(kernel, start, np.eye(3)[Y[chosen]], ridge=1e-3, epochs=4)
    for name, value in expected.scalars.items():
        assert trained.history[f"ntk_{name}"][-1] == pytest.approx(value, rel=1e-5), name


def test_definitions(trained):
    last, kernel = trained.callback.measurements[-1], trained.callback.kernel.astype(np.float64)
    values = np.linalg.eigvalsh(kernel)
    ridge = 1e-3 * np.trace(kernel)
    assert last.mean_diagonal == pytest.approx(np.trace(kernel) / 20)
    assert last.effective_dimension == pytest.approx(np.sum(values / (values + ridge)), rel=1e-6)
    np.testing.assert_allclose(last.eigenvalues, values[::-1])


def test_sample_has_all_classes_in_order(trained):
    labels = Y[trained.callback.sample.indices]
    assert list(labels) == sorted(labels)
    np.testing.assert_allclose(np.bincount(labels) / 20, np.bincount(Y) / 120, atol=0.06)


# ------------------------------------------------------------------------------------------------------- TensorBoard


def events(directory):
    """The values of each tag by step, from the event files that TensorFlow itself reads."""
    found = {}
    for path in sorted(pathlib.Path(directory).glob("events.out.tfevents.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                found.setdefault((plugin, value.tag), {})[event.step] = tf.make_ndarray(value.tensor)
    return found


def test_tensorboard_has_scalars_histograms_and_images(trained):
    found = events(trained.log_dir / "ntk")
    scalars = {("scalars", name.replace("_", "/", 1)) for name in NAMES}
    assert set(found) == {*scalars, ("histograms", "ntk/log10_eigenvalues"), ("images", "ntk/kernel")}
    assert {tuple(by_step) for by_step in found.values()} == {(0, 1, 2, 3, 4)}
    np.testing.assert_allclose(
        [found["scalars", "ntk/alignment"][k + 1] for k in range(4)], trained.history["ntk_alignment"], rtol=1e-6
    )
    assert found["scalars", "ntk/change"][0] == 0
    buckets = found["histograms", "ntk/log10_eigenvalues"][4]
    assert buckets.shape == (30, 3)
    assert buckets[:, 2].sum() == 20
    width, height, png = found["images", "ntk/kernel"][4]
    assert (width, height) == (b"260", b"260")
    assert tf.io.decode_png(png).shape == (260, 260, 3)


# ------------------------------------------------------------------------------------------------------ traced once


@pytest.mark.parametrize("name", KERAS)
def test_the_model_is_traced_once(name):
    kind, calls = KERAS[name], []

    class Counting(kind.layers.Layer):
        def call(self, x):
            calls.append(x)
            return x

    x = kind.Input((6,))
    model = compiled(kind, kind.Model(x, kind.layers.Dense(3)(Counting()(x))))
    callback = NtkCallback(X, Y, examples=8, budget=None)
    per_epoch = []
    counting = kind.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: per_epoch.append(len(calls)))
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[callback, counting])
    kernel = callback._kernel
    fit(model, callback, epochs=1)  # goes on, and measures the same start
    assert per_epoch[0] == per_epoch[1] == per_epoch[2] == len(calls)
    assert callback._kernel is kernel
    assert len(callback.measurements) == 5

    model.layers[-1].bias.assign(0 * model.layers[-1].bias)
    model.layers[-1].trainable = True
    model.layers[1].trainable = False  # a layer without variables
    fit(model, callback, epochs=1)
    assert callback._kernel is kernel


# ------------------------------------------------------------------------------------------------------------ budget


class Clock:
    """Time by count: an epoch takes `epoch` seconds, each example of a kernel `example`; nothing else takes any."""

    def __init__(self):
        self.now, self.epoch, self.example, self.built = 0.0, 10.0, 0.01, []

    def kernel(self, model, ntk, sample, memory):
        """In the place of a KernelNow."""
        clock = self

        class Kernel:
            smallest = 64

            def take(self, sample):
                self.count = len(sample)
                clock.built.append(self.count)

            def __call__(self):
                clock.now += clock.example * self.count
                return np.eye(self.count, dtype=np.float32) + np.float32(clock.now)

        kernel = Kernel()
        kernel.take(sample)
        return kernel

    def run(self, callback, epochs, initial_epoch=0):
        """Which epochs were measured, in `fit`'s calls of the callback."""
        callback.set_params({"epochs": epochs})
        callback.set_model(self.model)
        callback.on_train_begin()
        measured = []
        for epoch in range(initial_epoch, epochs):
            callback.on_epoch_begin(epoch)
            self.now += self.epoch
            callback.on_epoch_end(epoch, logs := {})
            measured += [epoch + 1] if math.isfinite(logs["ntk_change"]) else []
        callback.on_train_end()
        return measured


@pytest.fixture
def clock(monkeypatch, both):
    clock = Clock()
    clock.model = both["Keras 3"].model
    monkeypatch.setattr("exporter.callbacks.time.perf_counter", lambda: clock.now)
    monkeypatch.setattr("exporter.callbacks.KernelNow", clock.kernel)
    return clock


def test_within_its_budget_every_epoch_is_measured(clock, said):
    assert clock.run(NtkCallback(X, Y, examples=50), epochs=4) == [1, 2, 3, 4]  # 0.5 s of 10 s
    assert clock.run(NtkCallback(X, Y, examples=50, every=3), epochs=9) == [3, 6, 9]
    assert not said()


def test_beyond_its_budget_epochs_are_skipped_and_it_is_said_once(clock, said):
    callback = NtkCallback(X, Y, examples=120)  # 1.2 s of 10 s
    assert clock.run(callback, epochs=10) == [3, 5, 8, 10]
    assert callback._account.spent == pytest.approx(4 * 1.2)
    assert callback._account.trained == pytest.approx(100)
    (message,) = said()
    assert message == (
        "NtkCallback: measuring 120 examples takes 1.2 s, more than 5 % of an epoch's time (10 s), so it is done about "
        "every 2 epochs. For more pass a larger `budget` (None for any), or fewer `examples`."
    )
    assert clock.run(NtkCallback(X, Y, examples=120, budget=0.2), epochs=3) == [1, 2, 3]
    assert clock.run(NtkCallback(X, Y, examples=120, budget=None), epochs=3) == [1, 2, 3]


def test_if_it_would_never_be_measured_the_sample_is_reduced(clock, said, tmp_path):
    clock.example, clock.epoch = 0.1, 30.0  # 12 s, where three epochs leave 4.5 s
    callback = NtkCallback(X, Y, examples=120, log_dir=tmp_path)
    assert clock.run(callback, epochs=3) == [3]
    assert clock.built == [120, 36]
    assert callback.kernel.shape == (36, 36)
    assert [len(m.eigenvalues) for m in callback.measurements] == [36, 36]
    np.testing.assert_allclose(np.bincount(Y[callback.sample.indices]) / 36, np.bincount(Y) / 120, atol=0.03)
    (message,) = said()
    assert "so 36 of 120 examples are measured from now on, whose numbers cannot be compared" in message
    found = events(tmp_path / "ntk")["histograms", "ntk/log10_eigenvalues"]
    assert {step: buckets[:, 2].sum() for step, buckets in found.items()} == {0: 36, 3: 36}


def test_if_not_even_that_is_possible_it_is_said(clock, said):
    clock.example = 1.0
    assert clock.run(NtkCallback(X, Y, examples=120), epochs=3) == []
    assert clock.built == [120]
    (message,) = said()
    assert message.startswith(
        "NtkCallback: measuring 120 examples takes 1.2e+02 s, more than 5 % of the time of all epochs"
    )
    assert "so it may be that none is measured" in message


def test_another_model_begins_anew(clock, both):
    callback = NtkCallback(X, Y, examples=8)
    clock.run(callback, epochs=2)
    clock.run(callback, epochs=1)
    assert clock.built == [8]
    assert [m.epochs for m in callback.measurements] == [0, 1, 2, 1]
    clock.model = both["Keras 2"].model
    clock.run(callback, epochs=1)
    assert clock.built == [8, 8]
    assert [m.epochs for m in callback.measurements] == [0, 1]
    try:
        clock.model.layers[1].trainable = False
        clock.run(callback, epochs=1)
        assert clock.built == [8, 8, 8]
    finally:
        clock.model.layers[1].trainable = True


def test_continued_epochs_keep_their_numbers(clock, tmp_path):
    callback = NtkCallback(X, Y, examples=8, log_dir=tmp_path)
    assert clock.run(callback, epochs=7, initial_epoch=5) == [6, 7]
    assert [m.epochs for m in callback.measurements] == [5, 6, 7]
    assert list(events(tmp_path / "ntk")["scalars", "ntk/change"]) == [5, 6, 7]


def test_a_kernel_takes_fewer_examples(both):
    trained = both["Keras 3"]
    sample, chosen = trained.callback.sample.fewer(16)
    kernel = KernelNow(trained.model, NtkConfig(), trained.callback.sample, 1 << 30)
    kernel.take(sample)
    expected = trained.callback.kernel[np.ix_(chosen, chosen)]
    np.testing.assert_allclose(kernel(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------- kinds of models


def follow(model, x, y=None, epochs=1, targets=None, **options):
    callback = NtkCallback(x, y, budget=None, examples=6, **options)
    targets = y if targets is None else targets
    return fit(model, callback, epochs, x, targets), callback


def test_several_inputs_by_name():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = compiled(keras, keras.Model([a, b], keras.layers.Dense(1)(keras.layers.Concatenate()([b, a]))), "mse")
    x = {"b": X[:, 2:5], "a": X[:, :2]}
    _, callback = follow(model, x, X[:, 0])
    chosen = callback.sample.indices
    features = np.concatenate([X[chosen][:, :5], np.ones((6, 1))], 1)  # a linear model's Jacobian
    np.testing.assert_allclose(callback.kernel, features @ features.T, rtol=1e-5)
    assert list(callback.sample.targets[:, 0]) == sorted(X[chosen, 0])
    _, listed = follow(model, [X[:, :2], X[:, 2:5]], X[:, 0])
    np.testing.assert_allclose(listed.kernel, callback.kernel, rtol=1e-6)


def test_open_axes_have_the_sizes_of_the_sample():
    x = keras.Input((None, 2))
    model = compiled(keras, keras.Model(x, keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(2)(x))), "mse")
    history, callback = follow(model, RNG.normal(size=(20, 7, 2)), targets=np.zeros((20, 2)))
    assert callback.kernel.shape == (6, 6)
    assert "ntk_alignment" not in history
    assert "ntk_change" in history


def test_texts():
    model = compiled(keras, preprocessing_models.string_lookup(), "mse")
    words = np.array([["red", "green"], ["blue", "?"]] * 8)
    callback = NtkCallback(words, budget=None, examples=6)
    data = tf.data.Dataset.from_tensor_slices((words, np.zeros((16, 2)))).batch(4)
    model.fit(data, verbose=0, shuffle=False, callbacks=[callback])
    assert np.isfinite(callback.kernel).all()


def test_images_as_bytes_and_a_policy_of_mixed_precision():
    L = keras.layers
    policy = keras.DTypePolicy("mixed_float16")
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(3, dtype=policy), L.Activation("softmax")]
    )
    x = RNG.integers(0, 255, (32, 4, 4, 1), np.uint8)
    _, callback = follow(compiled(keras, model, "sparse_categorical_crossentropy"), x, RNG.integers(0, 3, 32))
    assert callback.kernel.dtype == np.float32
    assert np.isfinite(callback.kernel).all()


def test_mirrored_variables():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = perceptron(tf_keras)
    history, callback = follow(model, X, Y, epochs=2)
    assert set(history) >= NAMES
    assert callback.measurements[2].change != callback.measurements[1].change > 0


def test_early_stopping_can_watch_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = NtkCallback(X, Y, examples=8, budget=None)
    stopping = keras.callbacks.EarlyStopping("ntk_alignment", mode="min", patience=1)
    history = perceptron(keras).fit(X, Y, epochs=9, verbose=0, callbacks=[callback, stopping]).history
    assert len(history["loss"]) < 9
    assert not list(tmp_path.iterdir())  # without log_dir


@pytest.mark.parametrize("name", KERAS)
def test_diverged_weights_are_nan_and_training_goes_on(name, said, tmp_path):
    kind = KERAS[name]
    model = perceptron(kind)
    weights = model.layers[1].get_weights()

    def diverge(epoch, logs):
        model.layers[1].set_weights([w * np.nan for w in weights])

    callback = NtkCallback(X, Y, examples=8, budget=None, log_dir=tmp_path)
    diverging = kind.callbacks.LambdaCallback(on_epoch_end=diverge)
    history = model.fit(X, Y, epochs=3, verbose=0, callbacks=[diverging, callback]).history
    assert len(history["loss"]) == 3
    assert all(math.isnan(value) for key in NAMES for value in history[key])
    assert said() == [
        "NtkCallback: the kernel after 1 epochs is not finite, since the weights or the outputs diverged; its numbers "
        "are NaN. Train with a smaller learning rate."
    ]
    assert list(events(tmp_path / "ntk")["images", "ntk/kernel"]) == [0]


# ------------------------------------------------------------------------------------------------------------ errors


def refusal(model, callback, x=X, y=Y):
    with pytest.raises(ExportError) as error:
        fit(model, callback, 1, x, y)
    return str(error.value)


@pytest.mark.parametrize("name", KERAS)
def test_a_model_that_is_not_built_is_built_for_the_sample(name):
    kind = KERAS[name]
    model = compiled(kind, kind.Sequential([kind.layers.Dense(3)], name="unbuilt"))
    history, callback = follow(model, X, Y)
    assert set(history) >= NAMES
    np.testing.assert_allclose(np.diagonal(callback.kernel), np.sum(X[callback.sample.indices] ** 2, 1) + 1, rtol=1e-5)

    model = compiled(kind, kind.Sequential([kind.layers.Conv2D(3, 2)], name="unbuilt"))
    message = refusal(model, NtkCallback(X, Y))
    assert message.startswith("Expected 'unbuilt', which is not built, to take an example of x, received: ")


@pytest.mark.parametrize(
    ("x", "received"),
    [
        (X[:, :5], "float32 (n, 5)"),
        (X[:, :, None], "float32 (n, 6, 1)"),
        ([X, X], "0 float32 (n, 6); 1 float32 (n, 6)"),
        (X.astype(str), "str1024 (n, 6)"),
    ],
)
def test_examples_that_the_model_does_not_take(x, received):
    assert refusal(perceptron(keras), NtkCallback(x, Y)).endswith(f"received {received}; pass what its `fit` takes.")


def test_targets_of_another_number():
    with pytest.raises(ExportError, match=r"Expected as many examples in x and y, .* received x: 120, y: 119"):
        NtkCallback(X, Y[1:])


def test_examples_that_influence_each_other():
    model = keras.Sequential([keras.Input((6,)), export_models.BatchMean(), keras.layers.Dense(3)])
    message = refusal(compiled(keras, model), NtkCallback(X, Y))
    assert message.startswith("Examples influence each other")
    assert "ntk.vmap_axes: null" in message
    whole = NtkCallback(X, Y, examples=4, budget=None, ntk=NtkConfig(vmap_axes=None))
    assert set(fit(model, whole, 2)) >= NAMES


def test_a_kernel_of_more_than_one_number_for_each_pair():
    model = compiled(keras, keras.Sequential([keras.Input((4, 6)), keras.layers.Dense(3)]), "mse")
    message = refusal(model, NtkCallback(np.zeros((8, 4, 6))), np.zeros((8, 4, 6)), np.zeros((8, 4, 3)))
    assert message == (
        "Expected a kernel of one number for each pair of examples, received more, for outputs of shape (None, 4, 3); "
        "average over all of their axes: NtkConfig(trace_axes=[1, 2])."
    )


def test_keras_on_another_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    callback = NtkCallback(X, Y)
    callback.set_model(perceptron(keras))
    with pytest.raises(ExportError, match="Expected Keras to run on TensorFlow, received the jax backend"):
        callback.on_train_begin()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"every": 0}, "every: expected a number at least 1, received 0."),
        ({"examples": 1}, "examples: expected a number at least 2, received 1."),
        ({"budget": 0}, "budget: expected a number above 0, received 0."),
        ({"ridge": -1}, "ridge: expected a number above 0, received -1."),
    ],
)
def test_arguments_out_of_range(argument, message):
    with pytest.raises(ValueError, match=message):
        NtkCallback(X, Y, **argument)


def test_both_keras_take_it_for_a_callback():
    callback = NtkCallback(X)
    for kind in KERAS.values():
        assert isinstance(callback, kind.callbacks.Callback)


def test_it_can_be_copied_before_it_is_used(clock, tmp_path):
    callback = copy.deepcopy(NtkCallback(X, Y, examples=8, log_dir=tmp_path))
    assert not list(tmp_path.iterdir())
    assert clock.run(callback, epochs=2) == [1, 2]
    assert list(events(tmp_path / "ntk")["scalars", "ntk/change"]) == [0, 1, 2]
