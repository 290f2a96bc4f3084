import dataclasses

import export_models
import jax
import jax.numpy as jnp
import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from exporter.config import ConfigError, ExportConfig, NtkConfig, VerifyConfig
from exporter.errors import ExportError
from exporter.functionalize.tf_ops import registry
from exporter.ntk.reference import reference_ntk
from exporter.plan.planning import make_plan

STRUCTURED = "structured_derivatives"


def plan_of(model_id, ntk=None, export=None):
    return make_plan(models.by_id(model_id).build(), ntk or NtkConfig(), export or ExportConfig())


@pytest.fixture(scope="module")
def mlp():
    return plan_of("mlp", NtkConfig(implementation=STRUCTURED))


# What the kernel is


@pytest.mark.parametrize(
    ("trace_axes", "diagonal_axes", "shape", "swap"),
    [
        ((-1,), (), (None, None, 4, 4, 3, 3), (1, 0, 3, 2, 5, 4)),
        ((), (), (None, None, 4, 4, 3, 3, 2, 2), (1, 0, 3, 2, 5, 4, 7, 6)),
        ((1, -2, 3), (), (None, None), (1, 0)),
        ((1,), (-1,), (None, None, 3, 3, 2), (1, 0, 3, 2, 4)),
    ],
)
def test_shape_of_the_kernel(spatial, trace_axes, diagonal_axes, shape, swap):
    plan = make_plan(spatial, NtkConfig(trace_axes=trace_axes, diagonal_axes=diagonal_axes), ExportConfig())
    assert plan.kernel_shape == shape
    assert plan.swap == swap
    assert plan.axes == {
        "trace_axes": tuple(axis % 4 for axis in trace_axes),
        "diagonal_axes": tuple(axis % 4 for axis in diagonal_axes),
    }


@pytest.fixture(scope="module")
def spatial():
    return models.by_id("spatial_output").build()


def test_axes_that_the_output_does_not_have():
    with pytest.raises(ConfigError, match=r"ntk\.trace_axes: expected an axis from -2 to 1 .*, got 2"):
        plan_of("mlp", NtkConfig(trace_axes=(2,)))


def test_precision_that_a_platform_does_not_have():
    with pytest.raises(ConfigError, match="tpu has no float64"):
        plan_of("mlp", NtkConfig(precision="float64"), ExportConfig(platforms=("cpu", "tpu")))


def test_patterns_divide_the_variables():
    plan = plan_of("batch_norm", NtkConfig(trainable=("*", "!*dense*")))
    assert not any("dense" in path for path in plan.model.trainable)
    assert {path.rpartition("/")[2] for path in plan.model.trainable} == {"kernel", "bias", "gamma", "beta"}
    assert sum("dense" in path for path in plan.model.excluded) == 2
    assert sum("moving" in path for path in plan.model.frozen) == 2


def test_float64_is_of_inputs_variables_and_outputs():
    plan = plan_of("list_inputs", NtkConfig(precision="float64"))
    assert [spec.dtype for spec in plan.model.inputs] == ["float64", "int32"]
    assert {v.dtype for v in plan.model.trainable.values()} == {np.dtype(np.float64)}
    assert plan.kernel_dtype == "float64"


def test_float32_is_the_model_as_it_is(mlp):
    assert {v.dtype for v in mlp.model.trainable.values()} == {np.dtype(np.float32)}
    assert mlp.kernel_dtype == "float32"


def test_constants_of_derivatives_are_of_float64():
    """2/√π, of the derivative of erf, was rounded to float32."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "gelu"), keras.layers.Dense(3)])
    plan = make_plan(model, NtkConfig(precision="float64"), ExportConfig())
    x = plan.model.examples(3)
    arguments = plan.model.trainable, plan.model.frozen, x
    with plan.tracing():
        kernel = np.asarray(jax.jit(plan.kernel("layerwise"))(*arguments, x))
        expected = reference_ntk(plan.model.apply_fn, *arguments)
    np.testing.assert_allclose(kernel, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "precision", "shown"),
    [
        ("mixed_float16", "float32", "float32, also where the model has float16"),
        ("mixed_float16", "model", "model: float16 where the model has it"),
        ("float32", "model", "model: float32, since it has no half precision"),
        ("float32", "float32", "float32"),
    ],
)
def test_precision_that_is_shown(dtype, precision, shown):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype=dtype)])
    plan = make_plan(model, NtkConfig(precision=precision), ExportConfig())
    assert dict(plan.rows())["precision"] == shown
    assert plan.kernel_dtype == "float32"


def test_outputs_that_overflow_half_precision_are_not_compared():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype="mixed_float16")])
    model.layers[0].kernel.assign(model.layers[0].kernel * 1e6)
    make_plan(model, NtkConfig(), ExportConfig())


# Whether examples influence each other


@pytest.mark.parametrize("vmap_axes", ["auto", 0])
def test_examples_that_influence_each_other(vmap_axes):
    with pytest.raises(ExportError) as error:
        make_plan(export_models.coupled(), NtkConfig(vmap_axes=vmap_axes), ExportConfig())
    assert f"(ntk.vmap_axes: {vmap_axes})" in str(error.value)
    assert "Set ntk.vmap_axes: null" in str(error.value)


class Rolls(tf.Module):
    """Adds to each example a little of the one before it in the batch: no sum over the batch, and small."""

    def __init__(self, size):
        super().__init__()
        self.w = tf.Variable(tf.ones([4, 2]))
        self.size = size

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        return (x + self.size * tf.roll(x, 1, axis=0)) @ self.w


def test_examples_that_influence_each_other_a_little():
    with pytest.raises(ExportError, match=r"received a change of \d\.?\d*e-0[67]"):
        make_plan(Rolls(1e-6), NtkConfig(), ExportConfig())
    assert not make_plan(Rolls(0.0), NtkConfig(), ExportConfig()).coupled


def test_null_couples_whatever_the_model():
    assert plan_of("mlp", NtkConfig(vmap_axes=None)).coupled


def test_rounding_is_no_influence():
    """In float32 another batch gives other last digits; BatchNorm in inference mode has no part of the batch in it."""
    assert not plan_of("batch_norm").coupled


# Whether the function is the model


@pytest.mark.parametrize("coupled", [False, True])
def test_wrong_conversion(coupled, monkeypatch):
    """Of which the float64 Jacobian of the function knows nothing."""
    ntk = NtkConfig(vmap_axes=None if coupled else 0)
    plan_of("mlp", ntk)
    monkeypatch.setitem(registry._CONVERTERS, "Relu", registry.simple(lambda x: 2 * jnp.maximum(x, 0)))
    with pytest.raises(ExportError, match=r"was not converted to JAX faithfully: .* a difference of \d"):
        plan_of("mlp", ntk)
    plan_of("mlp", ntk, ExportConfig(verify=VerifyConfig(rtol=10)))


# What `--explain` shows


def test_text():
    plan = plan_of(
        "frozen_layers",
        NtkConfig(implementation=STRUCTURED, trainable=("*", "!*gamma")),
        ExportConfig(signatures=("ntk", "ntk_with_params")),
    )
    lines = [f"{title:<15} {text}" for title, text in plan.rows()]
    rows = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
    assert rows["model"] == plan.model.name
    assert rows["trainable"] == "3 variables, 14 numbers"
    assert rows["frozen"] == "4 variables, 32 numbers"
    assert rows["excluded"] == "1 variables, 4 numbers"
    assert rows["kernel"] == "ntk (n, n) float32"
    assert rows["implementation"] == STRUCTURED
    assert rows["platforms"] == "cpu, cuda"
    assert rows["examples"] == "independent of each other"
    shown = [line.split(maxsplit=1)[1] for line in lines if line.startswith("signature")]
    params = ", ".join(f"params_{path.replace('/', '_')}" for path in plan.model.trainable)
    assert shown == ["ntk(x1, x2) -> ntk", f"ntk_with_params(x1, x2, {params}) -> ntk"]
    for path, value in {**plan.model.trainable, **plan.model.frozen}.items():
        assert sum(line.split() == [path, *str(list(value.shape)).split()] for line in lines) == 1


def test_text_of_several_outputs_and_many_variables():
    text = "\n".join(f"{title:<15} {text}" for title, text in plan_of("dict_outputs", NtkConfig(output="score")).rows())
    assert "output          score (n, 2) float32 *" in text
    assert "output          unrelated (n, 1) float32\n" in text
    assert "signature       ntk_with_params(x1, x2, 4 \u00d7 params_…) -> ntk" in text


def test_model_without_trainable_variables():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.trainable = False
    with pytest.raises(ExportError, match="trainable variables"):
        make_plan(model, NtkConfig(), ExportConfig())


def test_more_features_than_the_exact_jacobian_has_numbers_are_warned_of():
    """6 × 8 + 8 + 8 × 8 + 8 + 8 × 12 + 12 parameters, 12 outputs."""
    plan = make_plan(export_models.many_outputs(), NtkConfig(), ExportConfig(features={"dimensions": 2833}))
    assert plan.projection_warning == (
        "; WARNING: 2,833 numbers, where the exact Jacobian has 2,832; set export.features.dimensions to fewer, or ask "
        "for the exact kernel"
    )
    assert plan.projection_warning in dict(plan.rows())["features"]
    fewer = dataclasses.replace(plan, export=ExportConfig(features={"dimensions": 2832}))
    assert fewer.projection_warning == ""
    without = dataclasses.replace(plan, export=ExportConfig(signatures=("ntk",)))
    assert without.projection_warning == ""
