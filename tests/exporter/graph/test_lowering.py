import os
import pathlib
import re
import site
import sys

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from exporter.compat.jax_names import stablehlo_text
from exporter.graph.lowering import CALLING_CONVENTION_VERSION, lower

PARAMS = {"w": np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)}


def fn(params, inputs):
    (x,) = inputs
    return jax.nn.softmax(jnp.tanh(x @ params["w"]), axis=-1)


def examples(n):
    return np.random.default_rng(1).standard_normal((n, 300)).astype(np.float32)


def save(directory, **options):
    """A SavedModel of `fn` of four examples, its parameters in variables."""
    module = tf.Module()
    module.params = {name: tf.Variable(value) for name, value in PARAMS.items()}
    lowered = lower(fn, **{"platforms": ("cpu", "cuda"), **options})
    module.f = tf.function(
        lambda x: lowered(module.params, (x,)), input_signature=[tf.TensorSpec([4, 300])], autograph=False
    )
    tf.saved_model.save(module, str(directory), options=tf.saved_model.SaveOptions(save_debug_info=False))
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"))


def nodes(directory, op):
    """All nodes of an op in a SavedModel."""
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((directory / "saved_model.pb").read_bytes())
    (meta_graph,) = model.meta_graphs
    functions = meta_graph.graph_def.library.function
    return [node for f in functions for node in f.node_def if node.op == op]


def config_values():
    return {name: getattr(jax.config, name) for name in jax.config.values if hasattr(jax.config, name)}


# Values


def test_computes_the_function(saved):
    model, x = tf.saved_model.load(str(saved)), examples(4)
    np.testing.assert_allclose(model.f(x), fn(PARAMS, (x,)), rtol=1e-5, atol=1e-7)


def test_any_number_of_examples_with_polymorphic_shapes():
    lowered = lower(fn, platforms=("cpu",), polymorphic_shapes=[None, ("(n, ...)",)])
    graph = tf.function(
        lowered, autograph=False, input_signature=[{"w": tf.TensorSpec([300, 300])}, (tf.TensorSpec([None, 300]),)]
    )
    for n in (1, 3, 5):
        np.testing.assert_allclose(graph(PARAMS, (examples(n),)), fn(PARAMS, (examples(n),)), rtol=1e-5, atol=1e-7)


def test_float64():
    x, params = examples(4).astype(np.float64), {"w": PARAMS["w"].astype(np.float64)}
    result = lower(fn, platforms=("cpu",), precision="float64")(params, (x,))
    assert result.dtype == tf.float64
    logits = np.exp(np.tanh(x @ params["w"]))
    np.testing.assert_allclose(result, logits / logits.sum(1, keepdims=True), rtol=1e-12)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_precision_of_matrix_products(precision, tmp_path):
    """As the program asks of the accelerator; on a CPU all are float32."""
    (node,) = nodes(save(tmp_path, precision=precision), "XlaCallModule")
    program = stablehlo_text(node.attr["module"].s)
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    wanted = {"float32": ["HIGHEST"], "tensorfloat32": ["HIGH"], "bfloat16": []}[precision]
    assert products
    assert all(re.findall(r"precision = \[(\w+), \1\]", line) == wanted for line in products)


def test_program_says_its_version_and_platforms(saved):
    (node,) = nodes(saved, "XlaCallModule")
    assert node.attr["version"].i == CALLING_CONVENTION_VERSION == 9
    assert list(node.attr["platforms"].list.s) == [b"CPU", b"CUDA"]


def test_stablehlo_is_of_the_version_that_the_oldest_tensorflow_reads(saved):
    """JAX would write tanh_v2 and exponential_v2, which TF 2.19 does not know."""
    (node,) = nodes(saved, "XlaCallModule")
    module = node.attr["module"].s
    assert b"StableHLO_v1.8.0" in module
    assert b"tanh_v1" in module
    assert b"_v2" not in module.replace(b"dot_general_v2", b"").replace(b"all_reduce_v2", b"")


def test_nothing_of_this_machine_is_in_the_bytes(saved):
    data = b"".join(path.read_bytes() for path in saved.rglob("*") if path.is_file())
    assert b"XlaCallModule" in data
    own = [
        os.getcwd(),
        str(pathlib.Path.home()),
        sys.prefix,
        *site.getsitepackages(),
        os.path.dirname(models.__file__),
        ".py",
    ]
    assert [text for text in own if text.encode() in data] == []


def test_parameters_are_variables_and_not_constants(saved):
    assert (saved / "saved_model.pb").stat().st_size < PARAMS["w"].nbytes / 10
    model, x = tf.saved_model.load(str(saved)), examples(4)
    model.params["w"].assign(2 * PARAMS["w"])
    np.testing.assert_allclose(model.f(x), fn({"w": 2 * PARAMS["w"]}, (x,)), rtol=1e-5, atol=1e-7)


# JAX


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_jax_is_as_it_was(precision):
    seen = []

    def looks(x):
        seen.append(config_values())
        return x

    before = config_values()
    lower(looks, platforms=("cpu",), precision=precision)(tf.zeros([2]))
    assert config_values() == before
    assert seen[0]["jax_export_calling_convention_version"] == CALLING_CONVENTION_VERSION
    assert seen[0] != before


def test_jax_is_as_it_was_after_a_failure():
    def fails(x):
        raise NotImplementedError("no such operation")

    before = config_values()
    with pytest.raises(NotImplementedError, match="no such operation"):
        lower(fails, platforms=("cpu",))(tf.zeros([2]))
    assert config_values() == before


def test_gradients_are_refused():
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = lower(lambda x: x * x, platforms=("cpu",))(x)
        return tape.gradient(y, x)

    with pytest.raises(LookupError, match="does not support gradients"):
        gradient(tf.constant([1.0, 2.0]))
