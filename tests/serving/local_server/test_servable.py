import gc
import weakref

import numpy as np
import pytest
import serving_models
import tensorflow as tf

from serving.local_server.errors import ServingError
from serving.local_server.servable import Servable

X = serving_models.X


def test_runs_a_signature_as_tensorflow_does(servable, version):
    loaded = tf.saved_model.load(str(version))
    for name, inputs in (("ntk", {"x1": X, "x2": X[:1]}), ("ntk_symmetric", {"x": X}), ("ntk_diagonal", {"x": X})):
        (result,) = servable.run(name, inputs).values()
        np.testing.assert_allclose(result, loaded.signatures[name](**inputs)["ntk"], rtol=1e-6)


def test_its_session_is_as_a_tf_serving_is_told(servable):
    assert servable._session._config.graph_options.rewrite_options.disable_meta_optimizer


def test_only_the_outputs_that_are_asked_for(servable):
    words = np.array([b"a", b"bcd"], object)
    assert set(servable.run("text", {"x": words})) == {"y_bytes", "length"}
    assert servable.run("text", {"x": words}, ["length"])["length"].tolist() == [1, 3]


@pytest.mark.parametrize(("dtype", "name"), [("float64", "double"), ("int32", "int32"), ("float16", "half")])
def test_another_dtype_is_refused_in_tf_servings_words(servable, dtype, name):
    with pytest.raises(ServingError, match=rf"^Expects arg\[1\] to be float but {name} is provided$"):
        servable.run("ntk", {"x1": X, "x2": X.astype(dtype)})


def test_what_tensorflow_says_is_passed_on(servable):
    with pytest.raises(ServingError) as error:
        servable.run("forward", {"x": X[:, :2]})
    assert error.value.code.name == "INVALID_ARGUMENT"
    assert "[3,2]" in str(error.value)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nobody", "FAILED_PRECONDITION", 'Serving signature key "nobody" not found.'),
        ("__saved_model_init_op", "INTERNAL", "Expected prediction signature method_name to be one of"),
    ],
)
def test_what_is_no_signature_to_predict_with(servable, name, code, message):
    with pytest.raises(ServingError) as error:
        servable.signature(name)
    assert error.value.code.name == code
    assert str(error.value).startswith(message)


def test_close_frees_the_session_and_the_graph_at_once(version):
    servable = Servable(version, 1)
    servable.run("forward", {"x": X})
    parts = [weakref.ref(servable._session), weakref.ref(servable._session.graph)]
    gc.disable()
    try:
        servable.close()
        del servable
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


def test_what_is_no_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"no")
    with pytest.raises(Exception, match="saved_model"):
        Servable(tmp_path, 1)
