import keras
import numpy as np
import preprocessing_models
import pytest
import tensorflow as tf
from preprocessing_models import MODELS, REAL, WORDS, texts

from exporter.errors import ExportError
from exporter.functionalize import functionalize

L = keras.layers


@pytest.mark.parametrize("name", MODELS)
def test_front_and_rest_are_the_model(name):
    build, x = MODELS[name]
    model = functionalize(build(), examples=REAL.get(name))
    assert model.front is not None
    for inputs in (x, tuple(a[:1] for a in x), model.examples(3)):
        behind = model.behind_front(inputs)
        assert [(None, *a.shape[1:]) for a in behind] == [spec.shape for spec in model.inputs]
        assert [a.dtype.name for a in behind] == [spec.dtype for spec in model.inputs]
        output = model.apply_fn(model.trainable, model.frozen, behind)
        np.testing.assert_allclose(output, model.original(inputs), rtol=1e-5, atol=1e-6)


def test_what_has_a_jax_form_has_no_front():
    x = keras.Input((2,), name="x")
    y = L.Embedding(5, 3)(L.Discretization([-1.0, 0.0, 1.0])(x))
    model = functionalize(keras.Model(x, L.Dense(2)(L.Flatten()(y))))
    assert model.front is None
    assert model.inputs == model.signature_inputs


def test_inputs_of_both_kinds():
    model = functionalize(preprocessing_models.string_and_number())
    assert [spec.name for spec in model.signature_inputs] == ["color", "weight"]
    assert model.front.operations == ("LookupTableFindV2",)
    assert model.inputs[0].name == "weight"
    assert model.inputs[1].dtype == "int64"


def test_front_follows_variables_that_are_not_trained(tmp_path):
    class Shifted(tf.Module):
        def __init__(self):
            super().__init__(name="shifted")
            self.offset = tf.Variable([1, 2], trainable=False)
            self.scale = tf.Variable([[0.5], [1.5]])

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int32, "x")])
        def __call__(self, x):
            letters = tf.strings.as_string(x + self.offset)
            return tf.tanh(tf.cast(tf.strings.to_hash_bucket_fast(letters, 5), tf.float32) @ self.scale)

    module = Shifted()
    model = functionalize(module)
    x = np.array([[1, 2], [3, 4]], np.int32)
    before = model.behind_front((x,))
    module.offset.assign([5, 6])
    assert not np.array_equal(model.behind_front((x,)), before)
    assert [v.name for v in model.front.variables] == [module.offset.name]
    holder = tf.Module()
    holder.front = model.front
    holder.run = tf.function(lambda x: model.front([x]), input_signature=[tf.TensorSpec([None, 2], tf.int32)])
    tf.saved_model.save(holder, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.run(x)[0], model.behind_front((x,))[0])


def test_assertions_are_made():
    model = functionalize(preprocessing_models.string_lookup(num_oov_indices=0))
    assert model.behind_front((texts(["red", "blue"]),))[0].tolist() == [[0, 2]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="vocabulary"):
        model.behind_front((texts(["red", "black"]),))


class BehindVariable(tf.Module):
    def __init__(self):
        super().__init__(name="behind")
        self.scale = tf.Variable(tf.ones([3, 3]))
        keys = tf.constant([0, 1, 2], tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, [0.1, 0.2, 0.3]), 0.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def __call__(self, x):
        y = x @ self.scale
        return y * self.table.lookup(tf.argmax(y, axis=1))[:, None]


def test_behind_a_variable_is_refused():
    with pytest.raises(ExportError, match=r"can be converted to JAX, received LookupTableFindV2 \(in .*Lookup\)"):
        functionalize(BehindVariable())


@pytest.mark.parametrize("shape", [(), (None,)], ids=["longest of the batch", "open axis"])
def test_what_has_no_fixed_shape_is_refused(shape):
    x = keras.Input(shape, dtype="string", name="text")
    y = L.StringLookup(vocabulary=WORDS)(x) if shape else L.TextVectorization(vocabulary=WORDS)(x)
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(L.Embedding(6, 3)(y))))
    with pytest.raises(ExportError, match=r"one shape for every example, received .* Pad or cut to a fixed length"):
        functionalize(model)


def test_examples_that_the_front_refuses():
    with pytest.raises(ExportError, match=r"take the examples of export.examples, received from DecodePng: .*Correct"):
        functionalize(preprocessing_models.decoding(), examples={"image": texts("no", "picture")})


def test_texts_of_which_nothing_is_known():
    with pytest.raises(ExportError, match=r"none for input 'image'. Set export.examples to a .npz or .zarr file"):
        functionalize(preprocessing_models.decoding())


def test_resources_other_than_tables():
    class Reader(tf.Module):
        def __init__(self):
            super().__init__(name="reader")
            self.scale = tf.Variable(1.0)
            self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, [0.0, 0.0])

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "x")])
        def __call__(self, x):
            return self.table.lookup(x) * self.scale

    with pytest.raises(ExportError, match="to look up scalars in tables"):
        functionalize(Reader())


def test_gradients_that_are_overridden_are_compared_behind_the_front():
    @tf.custom_gradient
    def halved(x):
        return tf.identity(x), lambda g: g / 2

    class Straight(L.Layer):
        def call(self, x):
            return halved(x)

    def model(layer):
        x = keras.Input((2,), dtype="string", name="words")
        y = L.Flatten()(L.Embedding(6, 3)(L.StringLookup(vocabulary=WORDS)(x)))
        return keras.Model(x, L.Dense(2)(layer(L.Dense(3)(y))))

    with pytest.raises(ExportError, match="to be those of its forward pass"):
        functionalize(model(Straight()))
    assert functionalize(model(L.Activation("swish"))).front is not None
