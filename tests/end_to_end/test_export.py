"""From a model to a verified SavedModel and back: each kind of model once, as users load and call it."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import textwrap

import export_models
import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, saved_model_pb2

import exporter
from exporter.config import SIGNATURES, ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.export import explain, export_savedmodel
from exporter.plan import signatures
from exporter.plan.planning import make_plan

each_export = pytest.mark.parametrize("name", export_models.EXPORTS)


def exports_with(signature, coupled=True):
    """The exports with that signature, with or without the one whose examples influence each other."""
    names = [name for name, (_, _, export) in export_models.EXPORTS.items() if signature in export.signatures]
    return pytest.mark.parametrize("name", [name for name in names if coupled or name != "coupled"])


# Values


@exports_with("forward")
def test_forward_is_the_model(exported, name):
    one = exported(name)
    x = one.inputs(5)
    output = one.loaded.forward(one.argument(x))
    np.testing.assert_allclose(output, one.model(one.argument(x)), rtol=1e-5, atol=1e-6)


@exports_with("ntk", coupled=False)
def test_ntk_of_any_numbers_of_examples(exported, name):
    """Also more than a block, whose size does not divide it, and none."""
    one = exported(name)
    x1, x2 = one.inputs(19), one.inputs(7, seed=1)
    full = one.reference(x1, x2)
    for n1, n2 in [(19, 7), (1, 1), (16, 1), (17, 7), (3, 5), (0, 3), (2, 0), (0, 0)]:
        part1, part2 = (one.argument(tuple(a[:n] for a in x)) for x, n in ((x1, n1), (x2, n2)))
        one.assert_close(one.loaded.ntk(part1, part2), full[:n1, :n2])


def test_ntk_of_any_numbers_of_coupled_examples(exported):
    """Each batch has a kernel of its own, which is no part of another's."""
    one = exported("coupled")
    for n1, n2 in [(4, 3), (1, 2)]:
        x1, x2 = one.inputs(n1), one.inputs(n2, seed=1)
        one.assert_close(one.loaded.ntk(*x1, *x2), one.reference(x1, x2))
    for n1, n2 in [(0, 3), (2, 0), (0, 0)]:
        assert one.loaded.ntk(*one.inputs(n1), *one.inputs(n2)).shape == (n1, n2)


@exports_with("ntk_symmetric")
def test_ntk_symmetric(exported, name):
    one = exported(name)
    for n in (18, 4, 0) if not one.plan.coupled else (4, 0):
        x = one.inputs(n)
        result = one.loaded.ntk_symmetric(one.argument(x))
        if n:
            one.assert_close(result, one.reference(x))
            swapped = np.transpose(result, one.plan.swap)
            np.testing.assert_allclose(result, swapped, rtol=0, atol=one.rtol * np.max(np.abs(result)))
        else:
            assert result.shape == tuple(0 if size is None else size for size in one.plan.kernel_shape)


@exports_with("ntk_diagonal")
def test_ntk_diagonal(exported, name):
    one = exported(name)
    x = one.inputs(5 if one.plan.coupled else 18)
    one.assert_close(one.loaded.ntk_diagonal(one.argument(x)), np.einsum("nn...->n...", one.reference(x)))
    empty = one.loaded.ntk_diagonal(one.argument(one.inputs(0)))
    assert empty.shape == (0, *one.plan.kernel_shape[2:])


@exports_with("ntk_features", coupled=False)
def test_ntk_features(exported, name):
    """Alike in blocks of all sizes, and their products about the kernel, as the manifest has it."""
    one = exported(name)
    x = one.inputs(18)
    received = one.loaded.ntk_features(one.argument(x)).numpy()
    expected = one.reference_features(tuple(a[:5] for a in x))
    one.assert_close(received[:5], expected)
    for k in (1, 17):
        one.assert_close(one.loaded.ntk_features(one.argument(tuple(a[k : k + 1] for a in x))), received[k : k + 1])
    empty = one.loaded.ntk_features(one.argument(one.inputs(0)))
    assert empty.shape == (0, *expected.shape[1:])
    measured = one.result.manifest["verification"]["features"]
    assert measured["dimensions"] == expected.shape[-1]
    if "ntk_symmetric" in one.plan.export.signatures:
        # The others have fewer numbers than features, which may all get a place of their own.
        least = 0.3 * measured["bound"] if name == "many_outputs" else 0
        assert least <= measured["error"] < 2 * measured["bound"]


def test_features_of_an_export_after_further_training_are_of_the_same_projection(exported):
    one = exported("many_outputs")
    x = one.inputs(3)
    model = tf.saved_model.load(str(one.path))
    for variable in model.params.values():
        variable.assign(1.1 * variable)
    keras.utils.clear_session(free_memory=False)
    again = export_models.many_outputs()
    again.set_weights([1.1 * w for w in again.get_weights()])
    config = ExportConfig(platforms="cpu", signatures=("ntk_features",))
    trained_further = export_models.Exported("", one.result, again, (NtkConfig(), config))
    one.assert_close(model.ntk_features(*x), trained_further.reference_features(x))


def test_features_of_coupled_examples_are_refused_and_left_out(exported):
    assert (
        "ntk_features"
        not in make_plan(export_models.coupled(), NtkConfig(vmap_axes=None), ExportConfig()).export.signatures
    )
    with pytest.raises(ExportError, match=r"^export.signatures: expected no ntk_features where examples influence"):
        make_plan(export_models.coupled(), NtkConfig(vmap_axes=None), ExportConfig(signatures=("ntk", "ntk_features")))


@exports_with("ntk_with_params")
def test_ntk_with_params(exported, name):
    one = exported(name)
    x1, x2 = one.inputs(4), one.inputs(3, seed=1)
    params = {path: (value * 1.5 + 0.1).astype(value.dtype) for path, value in one.plan.model.trainable.items()}
    result = one.loaded.ntk_with_params(one.argument(x1), one.argument(x2), params)
    one.assert_close(result, one.reference(x1, x2, params=params))
    own = one.loaded.ntk_with_params(one.argument(x1), one.argument(x2), dict(one.loaded.params))
    one.assert_close(own, one.reference(x1, x2))


@pytest.mark.parametrize("name", ["cnn", "two_inputs"])
def test_signatures_and_methods_agree(exported, name):
    one = exported(name)
    inputs = one.plan.model.inputs
    for signature in set(one.plan.export.signatures) - {"ntk_with_params"}:
        fn = one.loaded.signatures[signature]
        sides = ["x1", "x2"] if signature == "ntk" else ["x"]
        values = {side: one.inputs(3 + k, seed=k) for k, side in enumerate(sides)}
        keys = [side if len(inputs) == 1 else f"{side}_{spec.name}" for side in sides for spec in inputs]
        tensors = [tf.constant(a) for side in sides for a in values[side]]
        (result,) = fn(**dict(zip(keys, tensors, strict=True))).values()
        expected = getattr(one.loaded, signature)(*(one.argument(values[side]) for side in sides))
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", ["two_inputs", "all_axes"])
def test_signatures_in_a_session(exported, name):
    """As TF Serving runs them: the session's optimizers see more of the graph than those of functions."""
    one = exported(name)
    block = one.result.manifest["blocks"]["sizes"][-1]
    calls = []
    for signature in set(one.plan.export.signatures) - {"ntk_with_params"}:
        sides = signatures.SIGNATURES[signature].sides
        names = [key for side in sides for key in signatures.input_names(side, one.plan.model.inputs)]
        for n in (1, block + 1, 2 * block + 1):
            inputs = dict(zip(names, [*one.inputs(n), *one.inputs(n - 1, seed=1)], strict=False))
            calls.append((signature, inputs))
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definitions = tf.compat.v1.saved_model.load(session, ["serve"], str(one.path)).signature_def

        def run(signature, inputs):
            (output,) = definitions[signature].outputs.values()
            return session.run(output.name, {definitions[signature].inputs[k].name: a for k, a in inputs.items()})

        results = [run(*call) for call in calls]
    for result, (signature, inputs) in zip(results, calls, strict=True):
        (expected,) = one.loaded.signatures[signature](**{k: tf.constant(a) for k, a in inputs.items()}).values()
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 * np.max(np.abs(expected), initial=1e-30))


def test_serving_default(exported):
    x = exported("cnn").inputs(2)[0]
    signatures = exported("cnn").loaded.signatures
    assert list(signatures) == ["serving_default", *SIGNATURES, "ntk_manifest"]
    default = signatures["serving_default"](x1=tf.constant(x), x2=tf.constant(x))
    np.testing.assert_array_equal(default["ntk"], signatures["ntk"](x1=tf.constant(x), x2=tf.constant(x))["ntk"])
    few = exported("module")
    assert set(few.loaded.signatures) == {"serving_default", "ntk_diagonal", "ntk_symmetric", "ntk_manifest"}
    x = tf.constant(few.inputs(3)[0])
    np.testing.assert_array_equal(few.loaded.signatures["serving_default"](x=x)["ntk"], few.loaded.ntk_diagonal(x))
    assert not hasattr(few.loaded, "ntk")
    assert not hasattr(few.loaded, "forward")


def test_examples_that_are_not_finite_do_not_reach_others(exported):
    one = exported("cnn")
    (x,) = one.inputs(5)
    x[1, 0, 0, 0], x[3, 2, 1, 2] = np.nan, np.inf
    finite = [0, 2, 4]
    expected = one.reference((x[finite],))
    one.assert_close(one.loaded.ntk(x, x).numpy()[np.ix_(finite, finite)], expected)
    one.assert_close(one.loaded.ntk_symmetric(x).numpy()[np.ix_(finite, finite)], expected)
    one.assert_close(one.loaded.ntk_diagonal(x).numpy()[finite], np.diag(expected))
    np.testing.assert_allclose(one.loaded.forward(x).numpy()[finite], one.model(x[finite]), rtol=1e-5, atol=1e-6)
    assert np.all(np.isnan(one.loaded.ntk(x, x).numpy()[1]))


def test_results_do_not_depend_on_the_other_examples_of_a_request(exported):
    one = exported("cnn")
    (x,) = one.inputs(17)
    full = one.loaded.ntk(x, x).numpy()
    for n in (1, 5, 16):
        np.testing.assert_array_equal(one.loaded.ntk(x[:n], x[n - 1 :]), full[:n, n - 1 :])


def test_assigned_params_and_frozen_change_the_kernel(exported):
    one = exported("cnn")
    model = tf.saved_model.load(str(one.path))  # its own, as it is changed
    x1, x2 = one.inputs(3), one.inputs(2, seed=1)
    assert set(model.params) == set(one.plan.model.trainable)
    assert set(model.frozen) == set(one.plan.model.frozen)
    for path, value in {**one.plan.model.trainable, **one.plan.model.frozen}.items():
        np.testing.assert_array_equal((model.params if path in model.params else model.frozen)[path], value)
    (kernel,) = (path for path in model.params if "conv2d" in path and path.endswith("kernel"))
    (variance,) = (path for path in model.frozen if path.endswith("moving_variance"))
    params, frozen = {kernel: 2 * one.plan.model.trainable[kernel]}, {variance: 3 * one.plan.model.frozen[variance]}
    model.params[kernel].assign(params[kernel])
    one.assert_close(model.ntk(x1[0], x2[0]), one.reference(x1, x2, params=params))
    model.frozen[variance].assign(frozen[variance])
    expected = one.reference(x1, x2, params=params, frozen=frozen)
    one.assert_close(model.ntk(x1[0], x2[0]), expected)
    one.assert_close(model.signatures["ntk"](x1=tf.constant(x1[0]), x2=tf.constant(x2[0]))["ntk"], expected)


def test_inside_a_tf_function(exported):
    one = exported("cnn")

    @tf.function(input_signature=[tf.TensorSpec((None, 5, 4, 3)), tf.TensorSpec((None, 5, 4, 3))])
    def distances(x1, x2):
        m = one.loaded
        return m.ntk_diagonal(x1)[:, None] + m.ntk_diagonal(x2) - 2 * m.ntk(x1, x2)

    x1, x2 = one.inputs(4), one.inputs(3, seed=1)
    diagonals = [np.diag(one.reference(x)) for x in (x1, x2)]
    expected = diagonals[0][:, None] + diagonals[1] - 2 * one.reference(x1, x2)
    np.testing.assert_allclose(distances(*x1, *x2), expected, rtol=1e-4)


def test_float64(exported):
    one = exported("float64")
    assert {v.dtype for v in [*one.loaded.params.values(), *one.loaded.frozen.values()]} == {tf.float64}
    (x,) = one.inputs(3)
    assert x.dtype == np.float64
    assert one.loaded.ntk(x, x).dtype == tf.float64
    assert one.result.manifest["kernel"]["dtype"] == "float64"
    assert max(one.result.manifest["verification"]["errors"].values()) < 1e-13


def test_kept_and_diagonal_axes(exported):
    one = exported("all_axes")
    assert one.plan.kernel_shape == (None, None, 4, 3, 3, 2, 2)
    assert one.loaded.signatures["ntk"].structured_outputs["ntk"].shape.as_list() == [None, None, 4, 3, 3, 2, 2]
    assert one.loaded.signatures["ntk_diagonal"].structured_outputs["ntk"].shape.as_list() == [None, 4, 3, 3, 2, 2]


# What is written


@each_export
def test_manifest_is_that_of_the_result(exported, name):
    one = exported(name)
    manifest = json.loads((one.path / "assets.extra" / "ntk_manifest.json").read_text(encoding="utf-8"))
    assert manifest == one.result.manifest
    assert NtkConfig(**manifest["configuration"]["ntk"]) == one.plan.ntk
    assert ExportConfig(**manifest["configuration"]["export"]) == one.plan.export
    errors = manifest["verification"]["errors"]
    assert set(errors) == {f"{kind}/{s}" for kind in ("signature", "method") for s in one.plan.export.signatures}
    assert max(errors.values()) <= one.rtol


def test_manifest(exported):
    manifest = exported("cnn").result.manifest
    model = exported("cnn").plan.model
    spec = {"name": model.inputs[0].name, "shape": [None, 5, 4, 3], "dtype": "float32", "input": "x"}
    assert manifest["inputs"] == [spec]
    assert manifest["output"]["shape"] == [None, 2]
    kernel = dict(manifest["kernel"])
    shares = {key: kernel.pop(key) for key in ("shares", "shares_of")}
    assert kernel == {"shape": [None, None], "dtype": "float32", "swap": [1, 0]}
    assert shares["shares"].keys() == manifest["variables"]["trainable"].keys()
    assert sum(shares["shares"].values()) == pytest.approx(1)
    assert shares["shares_of"]["combinations"] == 0
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["implementation"] == "structured_derivatives"
    assert manifest["blocks"]["sizes"][0] == 1
    assert manifest["blocks"]["resident"] >= 1
    assert manifest["versions"]["ntk-exporter"] == exporter.__version__
    assert manifest["versions"]["tensorflow"] == tf.__version__
    assert manifest["versions"]["neural-tangents"] == importlib.metadata.version("neural-tangents")
    trainable = manifest["variables"]["trainable"]
    assert {path: tuple(v["shape"]) for path, v in trainable.items()} == {
        path: v.shape for path, v in model.trainable.items()
    }
    signature = exported("cnn").loaded.signatures["ntk_with_params"]
    inputs = set(signature.structured_input_signature[1]) - {"x1", "x2"}
    assert {v["input"] for v in trainable.values()} == inputs
    frozen = manifest["variables"]["frozen"]
    assert len(frozen) == 2
    assert not any(v["excluded_by_pattern"] for v in frozen.values())
    assert manifest["verification"]["examples"] == 8
    assert manifest["verification"]["smallest_eigenvalue"] > -1e-5
    assert manifest["verification"]["seconds"]["load"] > 0


@pytest.mark.parametrize("name", ["cnn", "lstm", "coupled"])
def test_nothing_of_this_machine_is_in_the_bytes(exported, name):
    one = exported(name)
    data = b"".join(path.read_bytes() for path in one.path.rglob("*") if path.is_file())
    own = [
        os.getcwd(),
        os.path.expanduser("~"),
        sys.prefix,
        os.path.dirname(models.__file__),
        str(one.path.parent),
        ".py",
    ]
    assert b"XlaCallModule" in data
    assert [text for text in own if text.encode() in data] == []


def test_programs(exported):
    """All are of the version that every supported TensorFlow reads, and for the platforms asked for."""
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((exported("cnn").path / "saved_model.pb").read_bytes())
    functions = model.meta_graphs[0].graph_def.library.function
    programs = [node for function in functions for node in function.node_def if node.op == "XlaCallModule"]
    assert len(programs) >= 3  # the kernel, its diagonal, the model
    for program in programs:
        assert program.attr["version"].i == 9
        assert list(program.attr["platforms"].list.s) == [b"CPU", b"CUDA", b"TPU"]


def test_wrong_shapes_do_not_reach_xla(exported):
    """As TF Serving calls it, where no Python checks shapes."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(exported("cnn").path))
        signature = meta_graph.signature_def["serving_default"]
        x1, x2, ntk = (
            session.graph.get_tensor_by_name(info.name)._as_tf_output()
            for info in (signature.inputs["x1"], signature.inputs["x2"], signature.outputs["ntk"])
        )

        def call(shape1, shape2):
            feeds = {x1: np.ones(shape1, np.float32), x2: np.ones(shape2, np.float32)}
            return session._call_tf_sessionrun(None, feeds, [ntk], [], None)[0]

        assert call((2, 5, 4, 3), (3, 5, 4, 3)).shape == (2, 3)
        for shape in [(3, 4, 5, 3), (3, 60), (5, 4, 3), (3, 5, 4, 3, 1), (0, 5, 4)]:
            with pytest.raises(tf.errors.InvalidArgumentError) as error:
                call((2, 5, 4, 3), shape)
            received = " ".join(map(str, shape))
            assert f"[ntk x2: expected float32 (n, 5, 4, 3), received] [{received}]" in str(error.value)
            assert not re.search("stablehlo|mlir|XlaCallModule", str(error.value), re.IGNORECASE)


def test_saved_model_cli_shows_every_signature(exported):
    command = [os.path.join(os.path.dirname(sys.executable), "saved_model_cli"), "show", "--all", "--dir"]
    one = exported("two_inputs")
    text = subprocess.run([*command, str(one.path)], check=True, capture_output=True, text=True).stdout
    text = text.partition("Concrete Functions")[0]
    shown = {
        (signature, *entry)
        for signature, body in re.findall(r"signature_def\['(\w+)'\]:(.*?)Method name", text, re.DOTALL)
        for entry in re.findall(r"(in|out)puts\['(\w+)'\] tensor_info:\s+dtype: (\w+)\s+shape: (\(.*?\))", body)
    }
    sides = {"ntk": ("x1", "x2"), "ntk_with_params": ("x1", "x2")}
    expected = set()
    for signature in (*SIGNATURES, "serving_default"):
        for side in sides.get(signature, ("x1", "x2") if signature == "serving_default" else ("x",)):
            expected.add((signature, "in", f"{side}_a", "DT_FLOAT", "(-1, 4)"))
            expected.add((signature, "in", f"{side}_b", "DT_INT32", "(-1, 3)"))
        output = ("output", "(-1, 2)") if signature == "forward" else ("ntk", "(-1, -1)")
        output = {"ntk_diagonal": ("ntk", "(-1)"), "ntk_features": ("features", "(-1, 256)")}.get(signature, output)
        expected.add((signature, "out", output[0], "DT_FLOAT", output[1]))
    expected |= {
        ("ntk_manifest", "in", "key", "DT_STRING", "()"),
        ("ntk_manifest", "out", "manifest", "DT_STRING", "()"),
    }
    for variable in one.result.manifest["variables"]["trainable"].values():
        shape = f"({', '.join(map(str, variable['shape']))})"
        expected.add(("ntk_with_params", "in", variable["input"], "DT_FLOAT", shape))
    assert shown == expected


WHERE_ONLY_TENSORFLOW_IS = """
    import sys
    for name in ("jax", "jaxlib", "keras", "tf_keras", "tf2jax", "neural_tangents", "flax", "exporter"):
        sys.modules[name] = None
    import numpy as np, tensorflow as tf
    model = tf.saved_model.load(sys.argv[1])
    x = np.load(sys.argv[2])
    np.save(sys.argv[3], model.ntk(x, x[:2]))
"""


def test_where_only_tensorflow_can_be_imported(exported, tmp_path):
    one = exported("cnn")
    (x,) = one.inputs(5)
    np.save(tmp_path / "x.npy", x)
    arguments = [str(path) for path in (one.path, tmp_path / "x.npy", tmp_path / "ntk.npy")]
    command = [sys.executable, "-P", "-c", textwrap.dedent(WHERE_ONLY_TENSORFLOW_IS), *arguments]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    one.assert_close(np.load(tmp_path / "ntk.npy"), one.reference((x,), (x[:2],)))


# The plan


def test_explain_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "kernel          ntk (n, n) float32" in str(explain(models.by_id("mlp").build()))
    assert os.listdir(tmp_path) == []


def test_calls_of_functions_leave_their_graphs_as_they_are(exported):
    """Or TensorFlow would optimize each of them at its first call from each other one."""
    saved_model = saved_model_pb2.SavedModel.FromString((exported("many_outputs").path / "saved_model.pb").read_bytes())
    graph = saved_model.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    configs = [
        config_pb2.ConfigProto.FromString(node.attr["config_proto"].s) for node in nodes if "config_proto" in node.attr
    ]
    assert configs
    assert all(config.graph_options.rewrite_options.disable_meta_optimizer for config in configs)


def test_embeddings_by_the_default_implementation(tmp_path):
    """Features with indices among them, of ids that TensorFlow may hold in 64 bits."""
    short, long = keras.Input((), dtype="int32", name="short"), keras.Input((), dtype="int64", name="long")
    embedded = [keras.layers.Embedding(1000, 8)(ids) for ids in (short, long)]
    model = keras.Model([short, long], keras.layers.Dense(2)(keras.layers.Concatenate()(embedded)))
    config = ExportConfig(platforms="cpu", signatures="ntk_diagonal", warmup=False)
    manifest = export_savedmodel(model, tmp_path, NtkConfig(), config).manifest
    assert max(manifest["verification"]["errors"].values()) < 1e-6
    assert manifest["implementation"] == "layerwise"


def test_bfloat16_inputs(tmp_path):
    model = keras.Sequential([keras.Input((5,), dtype="bfloat16"), keras.layers.Dense(3, dtype="bfloat16")])
    config = ExportConfig(platforms="cpu", signatures="ntk_diagonal", warmup=False)
    manifest = export_savedmodel(model, tmp_path, NtkConfig(), config).manifest
    assert max(manifest["verification"]["errors"].values()) < 1e-6
    assert [spec["dtype"] for spec in manifest["inputs"]] == ["float32"]


def test_half_precision_of_the_model_is_kept_and_judged_by_it(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
    for layer in layers[1:]:
        layer.dtype_policy = "mixed_bfloat16"
    signatures = ("ntk_symmetric", "ntk_features", "forward")
    config = export_models.small("32KiB", signatures=signatures, features={"dimensions": 256}, warmup=False)
    manifest = export_savedmodel(keras.Sequential(layers), tmp_path, NtkConfig(precision="model"), config).manifest
    verification = manifest["verification"]
    assert (verification["half"], verification["rtol"]) == ("bfloat16", 16 * 2**-7)
    assert 1e-4 < max(verification["errors"].values()) < 4 * 2**-7
    assert manifest["kernel"]["dtype"] == "float32"


def test_overflow_of_half_precision(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, dtype="float16", kernel_initializer="ones")])
    model.layers[0].kernel.assign(model.layers[0].kernel * 6e4)
    config = export_models.small("16KiB", signatures=("ntk_diagonal", "forward"), warmup=False)
    with pytest.raises(
        ExportError, match=r"forward to be finite, received .*float16 holds no more .* Use ntk\.precision"
    ):
        export_savedmodel(model, tmp_path, NtkConfig(precision="model"), config)
    assert not list(tmp_path.iterdir())
    export_savedmodel(model, tmp_path, NtkConfig(), config)
