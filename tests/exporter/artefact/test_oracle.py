"""The engine as the oracle of large models, and the proof that catches what is wrong with it."""

import dataclasses
import functools

import export_models
import models
import numpy as np
import pytest

from exporter.artefact import oracle as module
from exporter.artefact.oracle import (
    FEW_EXAMPLES,
    FEW_OUTPUTS,
    ROWS,
    EngineOracle,
    ExplicitOracle,
    Means,
    oracle_of,
    prove,
)
from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.functionalize import functionalize
from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise import contract, lowering, rules
from exporter.ntk.reference import reference_ntk
from exporter.plan.planning import make_plan
from exporter.progress import silent

TOO_MUCH = 1e20  # operations, for explicit Jacobians and for more than one example


def large(model, ntk, x, flops=5e10):
    """The oracle of a model that is said to be large."""
    return oracle_of(model, ntk, x, coupled=False, means=Means(flops, 10.0, 1), note=silent)


@pytest.mark.parametrize(("model_id", "columns"), [("attention", slice(2)), ("lstm", None)])
def test_engine_in_float64(model_id, columns):
    plan = make_plan(models.by_id(model_id).build(), NtkConfig(), ExportConfig())
    x = plan.model.examples(3)
    oracle = EngineOracle(plan.model, plan.ntk, x, silent)
    assert oracle.proof.error < 1e-10
    expected = reference_ntk(plan.model.apply_fn, plan.model.trainable, plan.model.frozen, x, **plan.axes)
    others = () if columns is None else (tuple(a[columns] for a in x),)
    kernel = oracle.kernel(plan.model.trainable, x, *others)
    np.testing.assert_allclose(kernel, expected[:, columns or slice(None)], rtol=1e-9, atol=1e-12)

    of_features = plan.model.trainable, x, Sketch(32), plan.ntk.trace_axes
    kernel, features = oracle.with_features(*of_features)
    np.testing.assert_allclose(kernel, expected, rtol=1e-9, atol=1e-12)
    explicit = ExplicitOracle(plan.model, plan.ntk, x, False, silent).features(*of_features)
    np.testing.assert_allclose(features, explicit, rtol=1e-9, atol=1e-9)


def test_fewer_examples_of_larger_models():
    model = functionalize(models.by_id("spatial_output").build())
    assert np.prod(model.output.shape[1:]) > FEW_OUTPUTS
    x = model.examples(8)
    oracles = [large(model, NtkConfig(), x, flops) for flops in (0, 1e9, 2e9, 6e9, 1e10, TOO_MUCH)]
    assert [oracle.examples for oracle in oracles] == [8, 5, 2, 3, 2, 1]
    assert [isinstance(oracle, ExplicitOracle) for oracle in oracles] == [True] * 3 + [False] * 3


def test_few_outputs_are_differentiated_one_by_one():
    model = functionalize(models.by_id("mlp").build())
    oracle = large(model, NtkConfig(), model.examples(8), TOO_MUCH)
    assert isinstance(oracle, ExplicitOracle)
    assert oracle.examples == FEW_EXAMPLES
    assert oracle.proof is None


@pytest.mark.parametrize("make", [functools.partial(ExplicitOracle, coupled=False), EngineOracle])
@pytest.mark.parametrize("trace_axes", [(1, 2, 3), (3,), (1, 3)])
def test_kernel_and_features_of_one_jacobian(trace_axes, make, monkeypatch):
    plan = make_plan(models.by_id("spatial_output").build(), NtkConfig(trace_axes=trace_axes), ExportConfig())
    model, x, sketch = plan.model, plan.model.examples(2), Sketch(32)
    oracle = make(model, plan.ntk, x, note=silent)
    monkeypatch.setattr(module, "_BYTES_OF_PROOF", 1 << 12)  # some outputs and examples at a time
    kernel, features = oracle.with_features(model.trainable, x, sketch, trace_axes)
    np.testing.assert_allclose(kernel, oracle.kernel(model.trainable, x), rtol=1e-12)
    np.testing.assert_allclose(
        features, oracle.features(model.trainable, x, sketch, trace_axes), rtol=1e-10, atol=1e-12
    )


def test_outputs_by_themselves_and_combinations():
    """Of few outputs all by themselves, of many some, and combinations of all."""
    few = functionalize(models.by_id("mlp").build())
    proof = prove(few, few.examples(2), silent)
    assert (proof.examples, proof.outputs, proof.combinations) == (2, few.output.shape[1], 0)
    many = functionalize(models.by_id("spatial_output").build())
    assert np.prod(many.output.shape[1:]) > ROWS
    proof = prove(many, many.examples(2), silent)
    assert (proof.outputs, proof.combinations) == (ROWS // 2, ROWS // 2)


@pytest.mark.parametrize(("model_id", "engine"), [("mlp", False), ("spatial_output", True)])
def test_each_variables_share(model_id, engine):
    """Those of the kernels over one variable alone; of combinations of many outputs nearly."""
    model = functionalize(models.by_id(model_id).build())
    x = model.examples(FEW_EXAMPLES)
    oracle = EngineOracle(model, NtkConfig(), x, silent) if engine else large(model, NtkConfig(), x)
    assert oracle.shares is None
    oracle.kernel({path: value * 2 for path, value in model.trainable.items()}, x)
    assert (oracle.shares is None) == (not engine)
    oracle.kernel(model.trainable, x)
    outputs = tuple(range(1, len(model.output.shape)))

    def trace(path):
        others = {name: value for name, value in model.trainable.items() if name != path}

        def apply_fn(trainable, frozen, x):
            own = {name: frozen[name] for name in others}
            return model.apply_fn({**trainable, **own}, {k: v for k, v in frozen.items() if k not in others}, x)

        one = {path: model.trainable[path]}
        return np.trace(reference_ntk(apply_fn, one, {**model.frozen, **others}, x, trace_axes=outputs))

    traces = {path: trace(path) for path in model.trainable}
    expected = {path: value / sum(traces.values()) for path, value in traces.items()}
    assert oracle.shares.variables == pytest.approx(expected, abs=0.2 if engine else 1e-9)
    assert (oracle.shares.examples, bool(oracle.shares.combinations)) == (FEW_EXAMPLES, engine)


def wrong_bias(monkeypatch):
    right = rules.BIAS
    monkeypatch.setattr(
        rules, "BIAS", dataclasses.replace(right, explicit=lambda *arguments: 1.001 * right.explicit(*arguments))
    )


def wrong_one_output(monkeypatch):
    """Of many outputs the derivative of a single one, which is hardly among those that are looked at by themselves."""
    right = rules.DENSE.factors

    def factors(site, a, d):
        a, d = right(site, a, d)
        return a, d * np.where(np.arange(d.shape[-1]) == d.shape[-1] - 2, 1.01, 1.0).astype(d.dtype)

    monkeypatch.setattr(rules, "DENSE", dataclasses.replace(rules.DENSE, factors=factors))


def wrong_patches(monkeypatch):
    def patches(eqn, data):
        return right(eqn, data).at[..., 0].multiply(0.9)

    right = lowering.CPU.patches
    monkeypatch.setattr(lowering, "CPU", dataclasses.replace(lowering.CPU, patches=patches))


def wrong_convolution(monkeypatch):
    def bind(eqn, values):
        outputs = _bind(eqn, values)
        return [0.999 * y for y in outputs] if eqn.primitive.name == "conv_general_dilated" else outputs

    _bind = lowering.CPU.bind
    monkeypatch.setattr(lowering, "CPU", dataclasses.replace(lowering.CPU, bind=bind))


def wrong_gram(monkeypatch):
    right = contract.contract
    monkeypatch.setattr(contract, "contract", lambda f1, f2: 1.0001 * right(f1, f2))


@functools.cache
def proved(model_id):
    """A model and examples for which the engine is right."""
    model = functionalize(export_models.many_outputs() if model_id == "many" else models.by_id(model_id).build())
    x = model.examples(2)
    assert prove(model, x, silent).error < 1e-10
    return model, x


@pytest.mark.parametrize(
    ("mutate", "model_id"),
    [
        (wrong_bias, "prelu"),
        (wrong_one_output, "many"),
        (wrong_patches, "conv2d"),
        (wrong_convolution, "conv2d"),
        (wrong_gram, "mlp"),
    ],
)
def test_wrong_engine_is_caught(mutate, model_id, monkeypatch):
    model, x = proved(model_id)
    mutate(monkeypatch)
    with pytest.raises(ExportError, match="expected the layerwise kernel in float64 within 1e-06 of explicit"):
        prove(model, x, silent)
