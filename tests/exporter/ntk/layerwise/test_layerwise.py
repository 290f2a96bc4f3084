"""The layerwise engine against the float64 Jacobian, on functions that meet parameters in every way."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_engine import layerwise_kernel_fn
from explicit_kernels import contracted
from jax import export, lax
from layerwise_cases import CASES, make

from exporter.ntk.layerwise import contract, engine, lowering
from exporter.ntk.layerwise import features as features_module
from exporter.ntk.layerwise.contract import Shape
from exporter.ntk.layerwise.features import ExampleFeatures
from exporter.ntk.layerwise.outputs import OutputAxes
from exporter.ntk.reference import reference_ntk


def _relative_error(got, want):
    assert got.shape == want.shape
    return np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want))


TRACED, DIAGONAL, KEPT = (
    {"trace_axes": trace, "diagonal_axes": diagonal} for trace, diagonal in (((1,), ()), ((), (1,)), ((), ()))
)


@functools.cache
def _explicit(name):
    """The kernel of all pairs of a case's outputs: each is compiled once."""
    fn, params, frozen, x1, x2 = make(CASES[name])
    return reference_ntk(fn, params, frozen, x1, x2, trace_axes=())


def _reference(name, shape=(), **axes):
    """Over these axes of a case's outputs, which are reshaped to (n, *shape)."""
    return contracted(_explicit(name), shape, **axes)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_float64_jacobian(name):
    fn, params, frozen, x1, x2 = make(CASES[name])
    x1 = (x1[0][1:],)  # as many as of the other side: both are traced once
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=()))
    assert _relative_error(kernel(params, frozen, x1, x2), _reference(name, **TRACED)[1:]) < 1e-6


@pytest.mark.parametrize("name", ["conv", "attention", "recurrent"])
def test_as_other_platforms_compute_it(name):
    fn, params, frozen, x1, x2 = make(CASES[name])
    kernel = jax.jit(layerwise_kernel_fn(fn, platforms=("cuda", "tpu"), **TRACED))
    assert _relative_error(kernel(params, frozen, x1, x2), _reference(name, **TRACED)) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_sites_get_the_expected_rules(name):
    case = CASES[name]
    fn, params, frozen, x, _ = make(case)
    features = ExampleFeatures(fn, params, frozen, x, counts=(4, 4), trace_axes=(1,), diagonal_axes=())
    assert tuple(site.rule.name for site in features.sites) == case.rules


@pytest.mark.parametrize(
    ("name", "shape", "kinds"),
    [
        ("mlp", (2, 3, 1), "ktd"),
        ("tied", (3, 2), "dt"),
        ("conv", (3, 1, 2), "dkd"),
        ("linear tail", (2, 3, 1), "dtk"),
        ("batch norm", (3, 2, 3), "tkt"),
        ("attention", (2, 3), "kd"),
        ("weight norm", (3, 2), "kk"),
    ],
)
def test_any_axes(name, shape, kinds):
    """Each axis of the outputs kept, traced or diagonal: any two kinds, and twice the same, meet somewhere."""
    fn, params, frozen, x1, x2 = make(CASES[name])
    trace, diagonal = ([k + 1 for k, kind in enumerate(kinds) if kind == each] for each in "td")
    axes = {"trace_axes": trace, "diagonal_axes": diagonal}
    kernel = jax.jit(layerwise_kernel_fn(lambda p, s, x: fn(p, s, x).reshape(-1, *shape), **axes))
    assert _relative_error(kernel(params, frozen, x1, x2), _reference(name, shape, **axes)) < 2e-6


@pytest.mark.parametrize(
    ("name", "rows", "axes"),
    [
        ("conv", 0, KEPT),
        ("conv", 30, TRACED),
        ("tied", 30, KEPT),
        ("tied", 10**6, TRACED),
        ("attention", 0, TRACED),
        ("attention", 30, KEPT),
        ("weight norm", 30, TRACED),
        ("weight norm", 10**6, KEPT),
    ],
)
def test_both_sides_in_one_batch(name, rows, axes, monkeypatch):
    """As deep models are done; contracted side by side, all pairs at once, or, with 30 rows, some sites this way."""
    monkeypatch.setattr(engine, "MANY_SITES", 0)
    monkeypatch.setattr(contract, "MOST_ROWS", rows)
    fn, params, frozen, x1, x2 = make(CASES[name])
    kernel = jax.jit(layerwise_kernel_fn(fn, **axes))
    assert _relative_error(kernel(params, frozen, x1, x2), _reference(name, **axes)) < 1e-6


NAMES = {"explicit": {"explicit", "joined"}, "gram": {"gram", "index"}, "shared": {"shared"}}


FORMED = (
    *("mlp", "conv", "batched weights", "tied", "attention"),
    *("recurrent", "nested scans", "linear tail", "batch norm"),
)


@pytest.mark.parametrize(
    ("name", "form", "axes"),
    [
        *(
            (name, form, (TRACED, DIAGONAL, KEPT)[(k + j) % 3])
            for k, name in enumerate(FORMED)
            for j, form in enumerate(NAMES)
        ),
        ("attention", "gram", DIAGONAL),  # of the embedding
        ("linear tail", "shared", KEPT),  # products of positions are folded
    ],
)
def test_every_form_gives_the_same(name, form, axes, monkeypatch):
    """Whatever the cost model prefers, and outputs are done with: each form of a case has other axes."""
    for other in NAMES:
        monkeypatch.setattr(Shape, f"{other}_cost", lambda *args, cost=float(other != form), **kwargs: cost)
    fn, params, frozen, x1, x2 = make(CASES[name])
    x1 = (x1[0][1:],)  # as many as of the other side: both are traced once
    features = ExampleFeatures(fn, params, frozen, x1, counts=(3, 3), **axes)
    forms = {c.form for c in features.components}
    assert forms <= NAMES[form] if form == "explicit" else forms & NAMES[form]
    kernel = jax.jit(layerwise_kernel_fn(fn, **axes))
    assert _relative_error(kernel(params, frozen, x1, x2), _reference(name, **axes)[1:]) < 1e-6


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("mlp", (0, 0, 1, 1)),
        ("tied", (0, 0, 0, 0, 0, 1, 1)),
        ("linear tail", (0, 1, 1, 1, 1)),
        ("batch norm", (0, 0, 1)),
        ("attention", (*(0,) * 6, 1, 1, 1, 1)),
        ("recurrent", (0, 0, 0, 0, 0, 1)),
        ("nested calls", (0, 0, 0)),
    ],
)
def test_sites_after_which_all_is_linear_share_their_derivatives(name, shared):
    fn, params, frozen, x, _ = make(CASES[name])
    features = ExampleFeatures(fn, params, frozen, x, counts=(4, 4), trace_axes=(1,), diagonal_axes=())
    assert tuple(int(site.shared) for site in features.sites) == shared


def test_derivatives_multiplied_with_data_are_not_shared():
    def fn(p, s, x):
        y, (z, _) = x[0] @ p["a"], lax.top_k(x[0] @ p["b"], 2)
        return jnp.where(x[0][:, :2] > 0, y * x[0][:, :2], lax.stop_gradient(y)) + z + x[0] @ p["c"] / 3 + x[0][:, :2]

    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=(5, size)).astype(np.float32) for k, size in {"a": 2, "b": 4, "c": 2}.items()}
    x1, x2 = ((rng.normal(size=(n, 5)).astype(np.float32),) for n in (4, 3))
    features = ExampleFeatures(fn, params, {}, x1, counts=(4, 3), trace_axes=(1,), diagonal_axes=())
    assert [site.shared for site in features.sites] == [False, False, True]
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=()))
    assert _relative_error(kernel(params, {}, x1, x2), reference_ntk(fn, params, {}, x1, x2)) < 1e-6


@pytest.mark.parametrize("axes", [([1], [2]), ([1, 2], []), ([], [1]), ([], [])])
def test_few_outputs_at_a_time(axes):
    """Little memory means more passes, of numbers of outputs that need not divide them."""
    fn, params, frozen, x1, x2 = make(CASES["conv"])
    scales = np.float32([1, 2, 3])

    def padded(p, s, x):
        return jnp.pad(fn(p, s, x), ((0, 0), (0, 1)))[:, :, None] * scales

    names = dict(zip(("trace_axes", "diagonal_axes"), axes, strict=True))
    features = ExampleFeatures(padded, params, frozen, x1, counts=(4, 3), **names)
    memory = (1 << 20) * 7 // features.outputs_at_once(1, 1 << 20) * 5
    assert features.outputs_at_once(7, memory) in (4, 5)
    kernel = jax.jit(layerwise_kernel_fn(padded, memory=memory, **names))
    want = np.pad(_explicit("conv"), ((0, 0), (0, 0), (0, 1), (0, 1)))[..., None, None] * np.outer(scales, scales)
    assert _relative_error(kernel(params, frozen, x1, x2), contracted(want, **names)) < 1e-6


@pytest.mark.parametrize("name", ["conv", "batched weights", "attention", "recurrent"])
def test_symbolic_numbers_of_examples(name):
    """One program for all: what is decided by numbers of examples is decided for some."""
    fn, params, frozen, x1, x2 = make(CASES[name])
    kernel = jax.jit(layerwise_kernel_fn(fn, **TRACED))
    sides = [
        tuple(jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for a in x)
        for n, x in zip(export.symbolic_shape("n1, n2"), (x1, x2), strict=True)
    ]
    exported = export.export(kernel, platforms=["cpu", "cuda"])(params, frozen, *sides)
    assert _relative_error(exported.call(params, frozen, x1, x2), _reference(name, **TRACED)) < 1e-6


@pytest.mark.parametrize("axes", [([1], []), ([], [1])])
def test_as_many_outputs_at_a_time_as_caches_like(axes, monkeypatch):
    """On CPUs: all where little is derived, else few, and no more parts than that needs; all on others."""
    outputs = 8

    def fn(p, s, x):
        return jnp.tanh(jnp.tanh(x[0] @ p["a"]) @ p["b"]).mean(1) @ p["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 64), "b": (64, 256), "c": (256, outputs)}
    params = {k: rng.normal(size=shape).astype(np.float32) / 8 for k, shape in shapes.items()}
    x1, x2 = ((rng.normal(size=(n, 32, 3)).astype(np.float32),) for n in (4, 3))
    names = dict(zip(("trace_axes", "diagonal_axes"), axes, strict=True))

    def features(how):
        return ExampleFeatures(fn, params, {}, x1, counts=(4, 3), how=how, **names)

    assert features(lowering.DEFAULT).outputs_in_cache(4) == outputs
    assert features(lowering.CPU).outputs_in_cache(4) == outputs
    assert features(lowering.CPU).outputs_in_cache(2000) < outputs
    assert outputs % features(lowering.CPU).outputs_in_cache(2000) == 0

    monkeypatch.setattr(lowering, "CPU", dataclasses.replace(lowering.CPU, cache=4 * 32 * 256 * 4 * 2))
    monkeypatch.setattr(features_module, "OPERATION", 0)
    assert features(lowering.CPU).outputs_in_cache(4) == 2
    kernel = jax.jit(layerwise_kernel_fn(fn, **names))
    text = kernel.trace(params, {}, x1, x2).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.tanh") == 4  # those of the forward passes of both sides, not of each part
    want = reference_ntk(fn, params, {}, x1, x2, **names)
    assert _relative_error(kernel(params, {}, x1, x2), want) < 1e-6


def test_convolutions_have_channels_last_on_cpus():
    """Derivatives' too, and in loops over outputs: those of another order would be 10 times slower there."""
    fn, params, frozen, x1, x2 = make(CASES["convs of many positions"])
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=(), memory=1))
    traced = kernel.trace(params, frozen, x1, x2)
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    orders = re.findall(r"stablehlo\.convolution.*?dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
    assert "stablehlo.while" in text
    assert set(orders) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    assert len(orders) >= 3


def test_large_sides_call_one_function_on_cpus(monkeypatch):
    """XLA compiles it once; inlined, as small ones are, operations of the sides differ in the order of their inputs."""
    fn, params, frozen, x1, _ = make(CASES["convs of many positions"])

    def trace():
        return jax.jit(engine.layerwise_kernel_fn(fn, **TRACED)).trace(params, frozen, x1, x1)

    assert "inlineable" not in trace().lower(lowering_platforms=("cpu",)).as_text()
    monkeypatch.setattr(lowering, "CPU", dataclasses.replace(lowering.CPU, cache=1 << 14))
    traced = trace()
    lowered = traced.lower(lowering_platforms=("cpu",))
    functions = re.findall(r'call @(\S+?)\(.*inlineable = "false"', lowered.as_text())
    assert len(functions) == 2
    assert len(set(functions)) == 1
    assert lowered.compile().as_text().count(" call(") == 2
    assert "inlineable" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_embedding_of_indices_out_of_range():
    """They are clipped or give nothing, as the gather says, and so do their Jacobians."""
    rng = np.random.default_rng(0)
    params = {"e": rng.normal(size=(5, 3)).astype(np.float32)}
    x = (np.array([[0, 4, 7], [2, 7, 9], [-9, 1, 0]]),)
    for mode in ("clip", "fill"):

        def fn(p, s, x, mode=mode):
            return jnp.tanh(jnp.take(p["e"], x[0], axis=0, mode=mode, fill_value=0.5).sum(1))

        kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=()))
        assert _relative_error(kernel(params, {}, x, x), reference_ntk(fn, params, {}, x)) < 1e-6


def test_symmetric_equals_pairwise():
    fn, params, frozen, x, _ = make(CASES["conv"])
    kernel = layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=())
    np.testing.assert_array_equal(kernel(params, frozen, x), kernel(params, frozen, x, x))


def test_several_inputs():
    def fn(p, s, x):
        return jnp.tanh(x[0] @ p["a"] + p["e"][x[1]]) @ p["c"]

    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=v).astype(np.float32) for k, v in {"a": (5, 4), "e": (3, 4), "c": (4, 2)}.items()}
    x1, x2 = ((rng.normal(size=(n, 5)).astype(np.float32), rng.integers(0, 3, n)) for n in (4, 3))
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=()))
    assert _relative_error(kernel(params, {}, x1, x2), reference_ntk(fn, params, {}, x1, x2)) < 1e-6


def test_coupled_examples():
    def fn(p, s, x):
        y = jnp.tanh(x[0] @ p["w"] + p["b"])
        return ((y - y.mean(0)) * p["g"] @ p["c"]).reshape(-1, 2, 3)

    rng = np.random.default_rng(0)
    shapes = {"w": (5, 4), "b": (4,), "g": (4,), "c": (4, 6)}
    params = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
    x1, x2 = ((rng.normal(size=(n, 5)).astype(np.float32),) for n in (4, 3))
    explicit = reference_ntk(fn, params, {}, x1, x2, coupled=True, trace_axes=())
    for trace, diagonal in (((2,), ()), ((2,), (1,)), ((), ())):
        axes = {"trace_axes": trace, "diagonal_axes": diagonal}
        kernel = jax.jit(layerwise_kernel_fn(fn, coupled=True, **axes))
        assert _relative_error(kernel(params, {}, x1, x2), contracted(explicit, **axes)) < 2e-6
    symmetric = reference_ntk(fn, params, {}, x1, coupled=True, **axes)
    assert _relative_error(kernel(params, {}, x1), symmetric) < 2e-6


def test_the_basis_numbers_diagonal_then_traced_then_kept_outputs():
    axes = OutputAxes((2, 3, 4), trace_axes=[0], diagonal_axes=[2])
    assert (axes.diagonal, axes.traced, axes.kept, axes.count) == (4, 2, 3, 24)
    basis = np.asarray(axes.basis(jnp.float32))
    assert basis.shape == (4, 2, 3, 2, 3, 4)
    for d, c, k in np.ndindex(4, 2, 3):
        assert basis[d, c, k, c, k, d] == 1
        assert basis[d, c, k].sum() == 1


@pytest.mark.parametrize("numbers", [contract.LOOPED - 1, contract.LOOPED + 50_001])
@pytest.mark.parametrize("rows", [(1, 1), (2, 3), (3, 8), (4, 4)])
def test_long_sums_are_accurate(rows, numbers):
    """However few rows there are: XLA:CPU alone would be off by 5e-5."""
    rng = np.random.default_rng(0)
    g1, g2 = (rng.uniform(size=(n, 1, 1, numbers)).astype(np.float32) for n in rows)
    expected = np.einsum("nm,lm->nl", g1[:, 0, 0].astype(np.float64), g2[:, 0, 0].astype(np.float64))
    result = np.asarray(jax.jit(contract.explicit)(g1, g2))[:, :, 0, 0, 0]
    assert np.max(np.abs(result - expected)) < 2e-6 * np.max(expected)
