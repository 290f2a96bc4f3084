import dataclasses

import export_models
import jax
import models
import numpy as np
import pytest

from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.ntk.kernel import diagonal_fn
from exporter.ntk.layerwise import engine
from exporter.ntk.reference import reference_ntk
from exporter.plan import choosing
from exporter.plan.choosing import (
    DEEP_PROJECTED,
    LARGEST_BLOCK,
    LARGEST_TILE,
    SHARE,
    SMALLER_BLOCK,
    _passes_for,
    choose,
)
from exporter.plan.planning import make_plan

STRUCTURED = "structured_derivatives"


def plan_of(model_id, ntk=None):
    return make_plan(models.by_id(model_id).build(), ntk or NtkConfig(), ExportConfig())


def with_budget(plan, budget):
    return dataclasses.replace(plan, export=ExportConfig(memory_budget=int(budget), features={"dimensions": 4}))


@pytest.fixture(scope="module")
def layerwise():
    return plan_of("mlp")


@pytest.fixture(scope="module")
def structured():
    return plan_of("mlp", NtkConfig(implementation=STRUCTURED))


def test_auto_is_layerwise_in_features_and_their_contraction(layerwise):
    told = []
    choice = choose(layerwise, lambda *note: told.append(note))
    assert told == [(f"memory of {k} of at most 3 programs", k, 3) for k in (1, 2)]
    assert choice.implementation == "layerwise"
    assert choice.schedule.blocks.sizes == (1, 8, LARGEST_BLOCK)
    x = models.random_inputs(layerwise.model.inputs, 3)
    variables = (layerwise.model.trainable, layerwise.model.frozen)
    features = jax.jit(choice.schedule.parts.features)(*variables, x)
    leaves = jax.tree.leaves(features)
    assert choice.features_bytes == sum(a.nbytes for a in leaves) // 3
    expected = reference_ntk(layerwise.model.apply_fn, *variables, x, **layerwise.axes)
    kernel = jax.jit(choice.schedule.parts.contract)(*variables, features, features)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)
    diagonal = jax.jit(diagonal_fn(choice.schedule.parts))(*variables, features)
    np.testing.assert_allclose(diagonal, np.diag(expected), rtol=1e-5, atol=1e-5)


def test_deep_models_have_two_small_sizes(layerwise, monkeypatch):
    """For XLA compiles a program for each, and that of a deep model takes as long as hundreds of its requests."""
    monkeypatch.setattr(engine, "MANY_SITES", len(layerwise.parts_of_large_blocks.costs()) - 1)
    schedule = choose(layerwise).schedule
    assert schedule.blocks.sizes == (1, SMALLER_BLOCK)
    assert schedule.projected == (DEEP_PROJECTED,)


@pytest.mark.parametrize("divisor", [1, 10, 100, 1000])
def test_blocks_and_resident_features_fill_the_budget(layerwise, divisor):
    choice = choose(with_budget(layerwise, 1e8 / divisor))
    budget = SHARE * 1e8 / divisor
    assert choice.work_bytes <= budget / 2
    assert budget - choice.schedule.blocks.tile * choice.features_bytes < choice.bytes <= budget


def test_tiles_leave_half_of_the_examples_resident(layerwise):
    blocks = choose(layerwise).schedule.blocks
    assert blocks.joined > 1
    assert blocks.tile <= LARGEST_TILE
    assert blocks.contracted == (*blocks.sizes, blocks.tile)
    smaller = choose(with_budget(layerwise, 2e6)).schedule.blocks
    assert smaller.resident >= 1
    assert smaller.tile < blocks.tile


@pytest.fixture(scope="module")
def many_outputs():
    return make_plan(export_models.many_outputs(), NtkConfig(), ExportConfig())


def test_more_passes_for_requests_that_do_not_fit(many_outputs):
    schedule = choose(many_outputs).schedule
    more = schedule.larger
    assert more.parts.passes == 3  # of 4 outputs each
    assert more.blocks.resident_examples > 2 * schedule.blocks.resident_examples
    variables = (many_outputs.model.trainable, many_outputs.model.frozen)
    x = models.random_inputs(many_outputs.model.inputs, 5)
    features, contract = map(jax.jit, (more.parts.features, more.parts.contract))
    total = 0.0
    for number in range(more.parts.passes):
        some = features(*variables, x, number)
        total += contract(*variables, some, some)
    expected = reference_ntk(many_outputs.model.apply_fn, *variables, x, **many_outputs.axes)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)


def test_where_more_passes_begin_to_be_better_is_not_counted_to(many_outputs, monkeypatch):
    calls = []
    monkeypatch.setattr(choosing, "_passes_for", lambda *args: calls.append(args) or _passes_for(*args))
    schedule = choose(with_budget(many_outputs, 1 << 30)).schedule  # of which millions of examples fit
    here, there = (schedule.parts, schedule.blocks), (schedule.larger.parts, schedule.larger.blocks)
    assert _passes_for(*here, schedule.most) <= _passes_for(*there, schedule.most)
    assert _passes_for(*here, schedule.most + 1) > _passes_for(*there, schedule.most + 1)
    assert schedule.most > 100_000
    assert len(calls) < 200


def test_outputs_that_do_not_fit_are_done_in_passes(many_outputs):
    """Instead of features of all outputs, or none at all."""
    small = choose(with_budget(many_outputs, 7 * choose(many_outputs).features_bytes))
    assert 1 < small.schedule.parts.passes <= 12
    assert small.features_bytes < choose(many_outputs).features_bytes
    assert small.bytes <= 7 * choose(many_outputs).features_bytes


def test_less_memory_means_smaller_blocks(layerwise):
    sizes = [choose(with_budget(layerwise, 1e8 / 10**k)).schedule.blocks.sizes for k in range(4)]
    assert sizes == sorted(sizes, key=max, reverse=True)
    assert sizes[0] == (1, 8, 64)
    assert max(sizes[-1]) < 64
    for each in sizes:
        assert each[0] == 1
        assert list(each) == sorted(set(each))


def test_features_that_do_not_fit_are_not_kept(layerwise, monkeypatch):
    """Then the kernel of each pair is computed by itself, some outputs at a time."""
    monkeypatch.setattr("exporter.plan.choosing.SHARE", 0.0)
    choice = choose(layerwise)
    assert choice.features_bytes == 0
    assert choice.schedule.blocks.resident == 1


def test_other_implementations_have_no_features(structured):
    choice = choose(structured)
    assert choice.implementation == STRUCTURED
    assert choice.schedule.blocks.sizes == (1, 4, 16)
    assert choice.features_bytes == 0
    assert choice.bytes > 0


def test_budget_decides_how_large_a_block_is(structured):
    most = choose(structured).bytes
    for budget, block in [(most, 16), (most - 1, 8), (most // 16, 4), (most // 64, 2), (most // 64 - 1, 1)]:
        choice = choose(with_budget(structured, budget))
        assert choice.schedule.blocks.sizes[-1] == block
        assert choice.bytes <= budget


@pytest.mark.parametrize("implementation", ["layerwise", STRUCTURED])
def test_one_pair_that_does_not_fit_the_budget(implementation):
    plan = plan_of("mlp", NtkConfig(implementation=implementation))
    with pytest.raises(ExportError) as error:
        choose(with_budget(plan, 100))
    expected = "One pair of examples does not fit the memory budget: expected at most 9.537e-05 MiB "
    assert str(error.value).startswith(expected + "(export.memory_budget), received ")
    assert str(error.value).endswith(f" MiB for {implementation}. Raise the budget.")


def test_coupled_examples_are_never_split():
    plan = make_plan(export_models.coupled(), NtkConfig(vmap_axes=None), ExportConfig())
    choice = choose(plan)
    assert choice.schedule is None
    x = models.random_inputs(plan.model.inputs, 3)
    arguments = (plan.model.trainable, plan.model.frozen, x, x)
    expected = reference_ntk(plan.model.apply_fn, *arguments, coupled=True, **plan.axes)
    kernel = jax.jit(plan.kernel(choice.implementation))
    np.testing.assert_allclose(kernel(*arguments), expected, rtol=1e-4, atol=1e-5)
