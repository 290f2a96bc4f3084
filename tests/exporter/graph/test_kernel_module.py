"""The functions of the SavedModel, with kernels in plain TF in the place of XLA programs."""

import re

import numpy as np
import pytest
import tensorflow as tf

from exporter.functionalize.tracing import TensorSpec
from exporter.graph.kernel_module import KernelModule
from exporter.plan.signatures import SIGNATURES, input_names, param_names

IMAGE = TensorSpec("image", (None, 4, 3), "float32")
TOKENS = TensorSpec("tokens", (None, 5), "int32")
PARAMS = {"dense/kernel": np.float32([1.0, 2.0, 4.0]), "dense/bias": np.float32(0.5)}
FROZEN = {"norm/mean": np.float32([0.25, 0.5, 0.75])}


def features(params, frozen, x):
    y = tf.reduce_sum((x[0] - frozen["norm/mean"]) * params["dense/kernel"], [1, 2]) + params["dense/bias"]
    return y * tf.reduce_sum(tf.cast(x[1], tf.float32), 1) if len(x) > 1 else y


def pair(params, frozen, x1, x2):
    return features(params, frozen, x1)[:, None] * features(params, frozen, x2)


def symmetric(params, frozen, x):
    return pair(params, frozen, x, x)


FUNCTIONS = {
    "ntk": pair,
    "ntk_symmetric": symmetric,
    "ntk_diagonal": lambda p, s, x: features(p, s, x) ** 2,
    "ntk_with_params": pair,
    "ntk_features": features,
    "forward": features,
}


def save(inputs, directory, names=tuple(FUNCTIONS)):
    module = KernelModule(PARAMS, FROZEN, inputs, {name: FUNCTIONS[name] for name in names})
    signatures = module.signatures_to_save
    del module.signatures_to_save
    tf.saved_model.save(module, str(directory), signatures)
    return str(directory)


@pytest.fixture(scope="module")
def one_input_path(tmp_path_factory):
    return save([IMAGE], tmp_path_factory.mktemp("one_input"))


@pytest.fixture(scope="module")
def two_inputs_path(tmp_path_factory):
    return save([IMAGE, TOKENS], tmp_path_factory.mktemp("two_inputs"))


@pytest.fixture(scope="module")
def one_input(one_input_path):
    return tf.saved_model.load(one_input_path)


@pytest.fixture(scope="module")
def two_inputs(two_inputs_path):
    return tf.saved_model.load(two_inputs_path)


def image(n, seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal((n, 4, 3)), tf.float32)


def tokens(n, seed=0):
    return tf.constant(np.random.default_rng(seed).integers(1, 9, (n, 5)), tf.int32)


def expected_pair(x1, x2, params=PARAMS, frozen=FROZEN):
    return pair(params, frozen, x1, x2).numpy()


# Names


def test_one_input_has_the_name_of_its_side():
    assert input_names("x1", [IMAGE]) == ("x1",)


def test_several_inputs_add_their_names():
    assert input_names("x1", [IMAGE, TOKENS]) == ("x1_image", "x1_tokens")


def test_other_characters_than_letters_and_digits_become_underscores():
    odd = [TensorSpec(name, (None,), "float32") for name in ("a/b:0", "Größe 2", "c-d.e")]
    assert input_names("x", odd) == ("x_a_b_0", "x_Gr__e_2", "x_c_d_e")
    assert param_names(["dense/kernel", "block-1/dense 2/kernel:0"]) == {
        "dense/kernel": "params_dense_kernel",
        "block-1/dense 2/kernel:0": "params_block_1_dense_2_kernel_0",
    }


@pytest.mark.parametrize(
    "paths",
    [
        ["a/b", "a_b", "a b"],
        ["a/b", "a_b_2", "a_b"],
        ["a_b_2", "a/b", "a_b"],
        ["a/b", "a_b", "a_b_2", "a/b/2"],
    ],
)
def test_names_that_collide_stay_apart(paths):
    keys = param_names(paths)
    assert list(keys) == paths
    assert len(set(keys.values())) == len(paths)
    assert all(re.fullmatch(r"params_a_b(_\d+)*", key) for key in keys.values())
    inputs = input_names("x", [TensorSpec(path, (None,), "float32") for path in paths])
    assert len(set(inputs)) == len(paths)


# Values


def test_methods_and_signatures_of_one_input(one_input):
    x1, x2 = image(3), image(2, seed=1)
    expected = expected_pair([x1], [x2])
    np.testing.assert_allclose(one_input.ntk(x1, x2), expected, rtol=1e-6)
    np.testing.assert_allclose(one_input.signatures["ntk"](x1=x1, x2=x2)["ntk"], expected, rtol=1e-6)
    np.testing.assert_allclose(one_input.ntk_symmetric(x1), expected_pair([x1], [x1]), rtol=1e-6)
    np.testing.assert_allclose(one_input.ntk_diagonal(x1), np.diag(expected_pair([x1], [x1])), rtol=1e-6)
    result = one_input.signatures["forward"](x=x1)
    np.testing.assert_allclose(result["output"], features(PARAMS, FROZEN, [x1]), rtol=1e-6)


def test_python_values_are_taken(one_input):
    x = image(2).numpy()
    expected = one_input.ntk(tf.constant(x), tf.constant(x))
    np.testing.assert_allclose(one_input.ntk(x, x), expected)
    np.testing.assert_allclose(one_input.ntk(x1=x, x2=x), expected)
    np.testing.assert_allclose(one_input.ntk_with_params(x, x, PARAMS), expected)
    np.testing.assert_allclose(one_input.ntk(x.tolist(), x.astype(np.float64)), expected)


@pytest.mark.parametrize("kind", [list, tuple, lambda x: dict(zip(("image", "tokens"), x, strict=True))])
def test_several_inputs_as_list_tuple_or_dict(two_inputs, kind):
    x1, x2 = [image(3), tokens(3)], [image(2, seed=1), tokens(2, seed=1)]
    expected = expected_pair(x1, x2)
    np.testing.assert_allclose(two_inputs.ntk(kind(x1), kind(x2)), expected, rtol=1e-6)
    np.testing.assert_allclose(two_inputs.ntk_with_params(kind(x1), kind(x2), PARAMS), expected, rtol=1e-6)
    np.testing.assert_allclose(two_inputs.ntk_symmetric(kind(x1)), expected_pair(x1, x1), rtol=1e-6)


def test_signature_of_several_inputs(two_inputs):
    x1, x2 = [image(3), tokens(3)], [image(2, seed=1), tokens(2, seed=1)]
    signature = two_inputs.signatures["ntk"]
    assert set(signature.structured_input_signature[1]) == {"x1_image", "x1_tokens", "x2_image", "x2_tokens"}
    result = signature(x1_image=x1[0], x1_tokens=x1[1], x2_image=x2[0], x2_tokens=x2[1])
    np.testing.assert_allclose(result["ntk"], expected_pair(x1, x2), rtol=1e-6)


@pytest.mark.parametrize("name", SIGNATURES)
def test_no_examples(one_input, two_inputs, name):
    if name == "ntk_with_params":
        assert one_input.ntk_with_params(image(0), image(2), PARAMS).shape == (0, 2)
        assert two_inputs.ntk_with_params([image(2), tokens(2)], [image(0), tokens(0)], PARAMS).shape == (2, 0)
        return
    sides = len(SIGNATURES[name].sides)
    assert 0 in getattr(one_input, name)(*[image(0)] * sides).shape
    assert 0 in getattr(two_inputs, name)(*[[image(0), tokens(0)]] * sides).shape


def test_assigned_variables_change_every_signature_but_not_given_params(one_input_path):
    model = tf.saved_model.load(one_input_path)
    x1, x2 = image(3), image(2, seed=1)
    assert set(model.params) == set(PARAMS)
    assert set(model.frozen) == set(FROZEN)
    params = {**PARAMS, "dense/bias": np.float32(-3.0)}
    frozen = {"norm/mean": np.float32([1.0, 0.0, -1.0])}
    model.params["dense/bias"].assign(params["dense/bias"])
    np.testing.assert_allclose(model.ntk(x1, x2), expected_pair([x1], [x2], params), rtol=1e-5)
    np.testing.assert_allclose(model.signatures["ntk"](x1=x1, x2=x2)["ntk"], model.ntk(x1, x2), rtol=1e-6)
    model.frozen["norm/mean"].assign(frozen["norm/mean"])
    np.testing.assert_allclose(model.ntk(x1, x2), expected_pair([x1], [x2], params, frozen), rtol=1e-5)
    with_params = model.ntk_with_params(x1, x2, {k: tf.constant(v) for k, v in PARAMS.items()})
    np.testing.assert_allclose(with_params, expected_pair([x1], [x2], PARAMS, frozen), rtol=1e-5)


def test_params_of_the_model_itself_are_taken(one_input):
    """`m.ntk_with_params(x1, x2, m.params)`: variables in the place of tensors."""
    x = image(2)
    result = one_input.ntk_with_params(x, x, {path: v.read_value() for path, v in one_input.params.items()})
    np.testing.assert_allclose(result, one_input.ntk(x, x), rtol=1e-6)


def test_shapes_share_one_trace(one_input):
    """TF would trace, optimise and keep a graph for each shape of the arguments."""
    for n in (1, 2, 3):
        one_input.ntk(image(n), image(2))
    assert one_input.ntk.experimental_get_tracing_count() == 1


def test_inside_a_tf_function(one_input):
    @tf.function(input_signature=[tf.TensorSpec([None, 4, 3]), tf.TensorSpec([None, 4, 3])])
    def mean(x1, x2):
        return tf.reduce_mean(one_input.ntk(x1, x2))

    x1, x2 = image(3), image(2, seed=1)
    np.testing.assert_allclose(mean(x1, x2), np.mean(expected_pair([x1], [x2])), rtol=1e-5)


def test_subset_of_signatures(tmp_path):
    model = tf.saved_model.load(save([IMAGE], tmp_path / "model", ["ntk_diagonal"]))
    assert list(model.signatures) == ["ntk_diagonal"]
    assert not hasattr(model, "ntk")


# Messages. Each gives the input, what was expected and what was received, and nothing else.

WRONG = {
    "rank": (lambda: tf.zeros([2, 12]), "{name}: expected float32 (n, 4, 3), received] [2 12]"),
    "scalar": (lambda: tf.zeros([]), "{name}: expected float32 (n, 4, 3), received] []"),
    "higher rank": (lambda: tf.zeros([2, 4, 3, 1]), "{name}: expected float32 (n, 4, 3), received] [2 4 3 1]"),
    "dimension": (lambda: tf.zeros([2, 4, 5]), "{name}: expected float32 (n, 4, 3), received] [2 4 5]"),
    "no examples": (lambda: tf.zeros([0, 3, 4]), "{name}: expected float32 (n, 4, 3), received] [0 3 4]"),
}


def assertion_of(error):
    """The assertion in the text of TF's error, in one short line."""
    text = str(error.value)
    message = re.search(r"assertion failed: \[(.*?\] \[[^\]]*\])", text)
    assert message, text
    assert len(message[1]) < 300
    assert "\n" not in message[1]
    assert not re.search("stablehlo|mlir", text, re.IGNORECASE)
    return message[1]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("side", [0, 1])
def test_message_of_a_method(one_input, wrong, side):
    value, message = WRONG[wrong]
    x = [image(3), image(2)]
    x[side] = value()
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        one_input.ntk(*x)
    assert assertion_of(error) == message.format(name=f"ntk x{side + 1}")


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["ntk_symmetric", "ntk_diagonal", "ntk_features", "forward"])
def test_message_of_a_method_of_one_side(one_input, name, wrong):
    value, message = WRONG[wrong]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        getattr(one_input, name)(value())
    assert assertion_of(error) == message.format(name=f"{name} x")


@pytest.mark.parametrize("dtype", [tf.float64, tf.int32, tf.string])
@pytest.mark.parametrize("side", [0, 1])
def test_message_of_a_wrong_dtype_is_tensorflows(one_input, dtype, side):
    x = [image(3), image(2)]
    x[side] = tf.zeros([2, 4, 3], dtype)
    with pytest.raises(TypeError, match=rf"Can not cast .*{dtype.name}.* to .*float32, name='x{side + 1}'"):
        one_input.ntk(*x)


@pytest.mark.parametrize("side", [0, 1])
def test_message_of_several_inputs(two_inputs, side):
    x = [[image(3), tokens(3)], [image(2), tokens(2)]]
    x[side][1] = tf.zeros([3 - side, 4], tf.int32)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        two_inputs.ntk(*x)
    received = f"received] [{3 - side} 4]"
    assert assertion_of(error) == f"ntk x{side + 1}_tokens: expected int32 (n, 5), {received}"


def test_message_of_unequal_counts(two_inputs):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        two_inputs.ntk([image(3), tokens(3)], [image(2), tokens(4)])
    message = "ntk: expected as many examples in each of x2_image, x2_tokens, received] [2 4]"
    assert assertion_of(error) == message


def test_message_of_params(one_input):
    params = {**PARAMS, "dense/kernel": np.zeros([2], np.float32)}
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        one_input.ntk_with_params(image(3), image(2), params)
    assert assertion_of(error) == "ntk_with_params dense/kernel: expected float32 (3,), received] [2]"


# As TF Serving calls it: tensors of any shape, straight into the graph


@pytest.fixture(scope="module")
def served(one_input_path, two_inputs_path):
    """call(path, signature, inputs) as the C++ session does, where Python checks no shapes."""
    sessions = {}

    def call(path, signature, inputs):
        if path not in sessions:
            graph = tf.Graph()
            session = tf.compat.v1.Session(graph=graph)
            sessions[path] = session, tf.compat.v1.saved_model.load(session, ["serve"], path)
        session, meta_graph = sessions[path]
        definition = meta_graph.signature_def[signature]
        feeds = {
            session.graph.get_tensor_by_name(definition.inputs[name].name)._as_tf_output(): value
            for name, value in inputs.items()
        }
        (fetch,) = (session.graph.get_tensor_by_name(info.name)._as_tf_output() for info in definition.outputs.values())
        return session._call_tf_sessionrun(None, feeds, [fetch], [], None)[0]

    yield call
    for session, _ in sessions.values():
        session.close()


def test_values_of_served_signatures(served, one_input_path, two_inputs_path):
    x1, x2 = image(3).numpy(), image(2, seed=1).numpy()
    expected = expected_pair([x1], [x2])
    np.testing.assert_allclose(served(one_input_path, "ntk", {"x1": x1, "x2": x2}), expected, rtol=1e-5)
    tokens1, tokens2 = tokens(3).numpy(), tokens(2).numpy()
    inputs = {"x1_image": x1, "x1_tokens": tokens1, "x2_image": x2, "x2_tokens": tokens2}
    expected = expected_pair([x1, tokens1], [x2, tokens2])
    np.testing.assert_allclose(served(two_inputs_path, "ntk", inputs), expected, rtol=1e-5)
    assert served(one_input_path, "ntk", {"x1": x1, "x2": x2[:0]}).shape == (3, 0)


@pytest.mark.parametrize("wrong", WRONG)
def test_message_of_a_served_signature(served, one_input_path, wrong):
    value, message = WRONG[wrong]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        served(one_input_path, "ntk", {"x1": image(3).numpy(), "x2": value().numpy()})
    assert assertion_of(error) == message.format(name="ntk x2")


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["ntk_symmetric", "ntk_diagonal", "ntk_features", "forward"])
def test_message_of_a_served_signature_of_one_side(served, one_input_path, name, wrong):
    value, message = WRONG[wrong]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        served(one_input_path, name, {"x": value().numpy()})
    assert assertion_of(error) == message.format(name=f"{name} x")


def test_message_of_served_params(served, one_input_path):
    inputs = {"x1": image(3).numpy(), "x2": image(2).numpy(), "params_dense_bias": np.float32(0)}
    for received, shape in (("2", (2,)), ("3 1", (3, 1)), ("", ())):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            served(one_input_path, "ntk_with_params", {**inputs, "params_dense_kernel": np.zeros(shape, np.float32)})
        assert assertion_of(error) == f"ntk_with_params dense/kernel: expected float32 (3,), received] [{received}]"


def test_message_of_served_unequal_counts(served, two_inputs_path):
    inputs = {"x_image": image(3).numpy(), "x_tokens": tokens(2).numpy()}
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        served(two_inputs_path, "ntk_symmetric", inputs)
    message = "ntk_symmetric: expected as many examples in each of x_image, x_tokens, received] [3 2]"
    assert assertion_of(error) == message


@pytest.mark.parametrize("wrong", ["rank", "dimension"])
def test_signatures_called_from_python_name_the_input(one_input, wrong):
    """TensorFlow checks these before they reach the graph, in its own words."""
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError), match="x2"):
        one_input.signatures["ntk"](x1=image(3), x2=WRONG[wrong][0]())


@pytest.mark.parametrize(("dtype", "low", "high"), [("int64", -(2**31), 2**31 - 1), ("uint64", 0, 2**32 - 1)])
def test_integers_that_do_not_fit_32_bits_are_refused(tmp_path, dtype, low, high):
    model = tf.saved_model.load(save([IMAGE, TensorSpec("ids", (None, 2), dtype)], tmp_path, ["forward"]))
    fitting = np.array([[low, high]], dtype)
    assert np.all(np.isfinite(model.forward([image(1), tf.constant(fitting)])))
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        model.forward([image(1), tf.constant(fitting + np.array(1, dtype))])
    message = f"forward x_ids: expected {dtype} between {low} and {high}, received from, to] [{low + 1} {high + 1}]"
    assert assertion_of(error) == message


class Lengths(tf.Module):
    """A front: the lengths of words, as many as the first text has."""

    def __call__(self, side):
        return [tf.strings.length(side[0])]


@pytest.fixture(scope="module")
def behind_a_front():
    words, lengths = TensorSpec("words", (None, None), "string"), TensorSpec("lengths", (None, 2), "int32")
    functions = {"forward": lambda params, frozen, x: tf.cast(x[0], tf.float32) * params["dense/bias"]}
    return KernelModule(PARAMS, FROZEN, [words], functions, front=Lengths(), behind=[lengths])


class TestFront:
    def test_is_run_on_the_inputs(self, behind_a_front):
        model = behind_a_front
        assert model.forward(tf.constant([["a", "bcd"]])).numpy().tolist() == [[0.5, 1.5]]
        assert model.signatures_to_save["forward"].structured_input_signature[1]["x"].shape.as_list() == [None, None]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["a", "b"], r"forward x: expected string \(n, n\), received"),
            ([["a"], ["b"]], r"forward, preprocessed lengths: expected int32 \(n, 2\), received"),
        ],
    )
    def test_what_it_gives_is_checked(self, behind_a_front, words, message):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            behind_a_front.forward(tf.constant(words))
