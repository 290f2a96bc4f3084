"""The layerwise engine against the float64 Jacobian, on functions that meet parameters in every way."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from exporter.ntk.layerwise import contract, lowering
from exporter.ntk.layerwise import features as features_module
from exporter.ntk.layerwise.contract import Shape
from exporter.ntk.layerwise.engine import layerwise_kernel_fn
from exporter.ntk.layerwise.features import ExampleFeatures
from exporter.ntk.layerwise.outputs import OutputAxes
from exporter.ntk.reference import reference_ntk

CONV = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of parameters, constants and one input, and the rules that its sites must get."""

    fn: Callable
    params: dict[str, tuple[int, ...]]
    x: tuple[int, ...]
    rules: tuple[str, ...]
    frozen: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    tokens: int = 0


def _mlp(p, s, x):
    return jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"] + p["d"]


def _left_operand(p, s, x):
    return jnp.einsum("jk,nk->nj", p["a"], jnp.tanh(jnp.einsum("ik,nk->ni", p["b"], x)))


def _batched_weights(p, s, x):
    return jnp.tanh(jnp.einsum("ngti,gij->ntgj", x, p["w"])).reshape(x.shape[0], -1) @ p["c"]


def _tied(p, s, x):
    h = jnp.tanh(x @ p["a"])
    for _ in range(2):
        h = jnp.tanh(h @ p["w"] + p["b"])
    return (h @ p["w"].T) @ p["c"]


def _conv(p, s, x):
    y = lax.conv_general_dilated(
        x, p["k"], (2, 1), ((1, 2), (0, 1)), rhs_dilation=(1, 2), feature_group_count=2, **CONV
    )
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _conv_transposed(p, s, x):
    y = lax.conv_transpose(x, p["k"], (2, 3), "SAME", rhs_dilation=(2, 1), **CONV)
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _conv_channels_first(p, s, x):
    y = lax.conv_general_dilated(x, p["k"], (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH"))
    return jnp.tanh(y).sum(2) @ p["c"]


def _depthwise_3d(p, s, x):
    y = lax.conv_general_dilated(
        x, p["k"], (1, 2, 1), "VALID", feature_group_count=3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _conv_negative_padding(p, s, x):
    y = lax.conv_general_dilated(x, p["k"], (1, 1), ((-1, 2), (1, -1)), lhs_dilation=(2, 1), **CONV)
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _max_pooling(p, s, x):
    """Windows that overlap, and leave some of the data out; equal maxima; and windows of too many taps."""

    def largest(y, window, strides, padding):
        return lax.reduce_window(y, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), padding)

    y = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", **CONV)
    y = (y + lax.stop_gradient(jnp.round(y) - y)) * p["s"]
    y = largest(y, (3, 2), (2, 1), "SAME") + p["b"]
    y = largest(y, (2, 2), (2, 3), ((0, 0), (1, 0), (0, 1), (0, 0))) * p["t"]
    return largest(y, (2, 13), (1, 1), "SAME").reshape(len(x), -1) @ p["c"]


def _convs_of_many_positions(p, s, x):
    y = lax.conv_general_dilated(
        x, p["a"], (1, 2), ((2, 1), (0, 3)), rhs_dilation=(2, 1), dimension_numbers=("NCHW", "OIHW", "NHWC")
    )
    y = lax.conv_general_dilated(jnp.tanh(y), p["b"], (2, 1), ((1, 2), (-1, 1)), lhs_dilation=(1, 2), **CONV)
    return jnp.tanh(y).sum((1, 2)) @ p["c"]


def _convs_of_large_kernels(p, s, x):
    """Each of more taps than are written out."""
    y = lax.conv_general_dilated(x, p["a"], (2, 1), ((3, 3), (3, 2)), feature_group_count=2, **CONV)
    strange = {"lhs_dilation": (2, 1), "rhs_dilation": (2, 1), "feature_group_count": 2}
    y = lax.conv_general_dilated(jnp.tanh(y), p["b"], (1, 2), ((5, 4), (4, 5)), **strange, **CONV)
    y = lax.conv_general_dilated(jnp.tanh(y), p["k"], (2, 2), "SAME", **CONV)
    return jnp.tanh(y).sum((1, 2)) @ p["c"]


def _batch_norm(p, s, x):
    inverse = lax.rsqrt(jnp.square(s["v"]) + 0.3) * p["g"]
    return jnp.tanh(x * inverse + (p["b"] - s["m"] * inverse)) @ p["c"]


def _attention(p, s, x):
    h = p["e"][x] + p["pos"]
    q, k, v = (jnp.einsum("btd,dhf->bthf", h, p[n]) for n in "qkv")
    h = h + jnp.einsum("bhtu,buhf,hfd->btd", jax.nn.softmax(jnp.einsum("bthf,buhf->bhtu", q, k)), v, p["o"])
    m = h.mean(-1, keepdims=True)
    h = (h - m) * lax.rsqrt(((h - m) ** 2).mean(-1, keepdims=True) + 1e-3) * p["g"] + p["b"]
    return (h @ p["e"].T).mean(1) @ p["c"]


def _recurrent(p, s, x):
    def step(carry, x):
        carry = jnp.tanh(x @ p["w"] + carry @ p["u"] + p["b"])
        return carry, carry * p["g"]

    init = jnp.zeros((x.shape[0], 4)) + p["h0"]
    carry, ys = lax.scan(step, init, x.swapaxes(0, 1), reverse=True)
    return carry @ p["c"] + ys.sum(0)[:, :2]


def _nested_scans(p, s, x):
    def inner(carry, x):
        return jnp.tanh(carry + x @ p["w"]), None

    def outer(carry, x):
        carry, _ = lax.scan(inner, carry, x)
        return carry @ p["u"], None

    carry, _ = lax.scan(outer, jnp.zeros((x.shape[0], 4)), jnp.moveaxis(x, 0, 2))
    return carry @ p["c"]


def _scan_over_layers(p, s, x):
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w + p["b"]), None), x, p["layers"])
    return h @ p["c"]


def _scan_of_parameters(p, s, x):
    """A scan that also returns something made of parameters alone."""
    h, ys = lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), jnp.tanh(p["w"]).sum(0)), x, None, 3)
    return h @ p["c"] + jnp.tanh(ys.sum(0)[:2])


def _scan_with_a_counter(p, s, x):
    """Parameters chosen, and scaled, by a counter that the loop carries, as TensorFlow's loops have it."""

    def step(carry, _):
        k, h = carry
        return (k + 1, jnp.tanh(h @ p["layers"][k] * (p["g"] * (k + 1)))), None

    (_, h), _ = lax.scan(step, (0, x), None, 3)
    return h @ p["c"]


def _weight_norm(p, s, x):
    return jnp.tanh(x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0) * p["g"])) @ p["c"]


def _no_rule(p, s, x):
    y = jnp.where(x[:, :2] > 0, p["z"], 0.0) / (3 + p["d"] ** 2)
    y = y + lax.cond(x[0, 0] > 0, lambda w: w @ p["w"], lambda w: -w @ p["w"], x)
    return jnp.concatenate([y, jnp.broadcast_to(p["t"], (len(x), 2))], 1) * p["q"] - p["q"]


@jax.custom_vjp
def _scaled(x, w):
    return x * w


_scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda saved, d: (d * saved[1], jnp.sum(d * saved[0], 0)))


def _nested_calls(p, s, x):
    layer = jax.jit(lambda x, w: jax.checkpoint(lambda x: jax.nn.silu(jax.jit(jnp.dot)(x, w)))(x))
    return _scaled(layer(layer(x, p["a"]), p["b"]), p["c"])


CASES = {
    "mlp": Case(_mlp, {"a": (5, 7), "b": (7,), "c": (7, 6), "d": (6,)}, (5,), ("dense", "bias", "dense", "bias")),
    "left operand": Case(_left_operand, {"a": (6, 4), "b": (4, 5)}, (5,), ("dense", "dense")),
    "batched weights": Case(_batched_weights, {"w": (2, 5, 3), "c": (24, 6)}, (2, 4, 5), ("dense", "dense")),
    "tied": Case(
        _tied,
        {"a": (5, 4), "w": (4, 4), "b": (4,), "c": (4, 6)},
        (5,),
        ("dense", "dense", "bias", "dense", "bias", "dense", "dense"),
    ),
    "conv": Case(_conv, {"k": (3, 2, 2, 6), "c": (4 * 3 * 6, 6)}, (6, 4, 4), ("convolution", "dense")),
    "conv transposed": Case(
        _conv_transposed, {"k": (3, 3, 2, 3), "c": (6 * 12 * 3, 6)}, (3, 4, 2), ("convolution", "dense")
    ),
    "conv channels first": Case(_conv_channels_first, {"k": (4, 2, 3), "c": (4, 6)}, (2, 5), ("convolution", "dense")),
    "depthwise 3d": Case(
        _depthwise_3d, {"k": (2, 2, 2, 1, 6), "c": (3 * 2 * 2 * 6, 6)}, (4, 4, 3, 3), ("convolution", "dense")
    ),
    "conv negative padding": Case(
        _conv_negative_padding, {"k": (2, 2, 2, 3), "c": (7 * 3 * 3, 6)}, (4, 4, 2), ("convolution", "dense")
    ),
    "max pooling": Case(
        _max_pooling,
        {"k": (3, 3, 2, 3), "s": (3,), "b": (3,), "t": (3,), "c": (3 * 4 * 3, 6)},
        (9, 12, 2),
        ("convolution", "scale", "bias", "scale", "dense"),
    ),
    "convs of many positions": Case(
        _convs_of_many_positions,
        {"a": (3, 2, 3, 2), "b": (3, 2, 3, 4), "c": (4, 6)},
        (2, 18, 21),
        ("convolution", "convolution", "dense"),
    ),
    "convs of large kernels": Case(
        _convs_of_large_kernels,
        {"a": (6, 6, 1, 4), "b": (5, 6, 2, 4), "k": (7, 4, 4, 3), "c": (3, 6)},
        (9, 8, 2),
        ("convolution", "convolution", "convolution", "dense"),
    ),
    "batch norm": Case(
        _batch_norm, {"g": (5,), "b": (5,), "c": (5, 6)}, (3, 5), ("scale", "bias", "dense"), {"v": (5,), "m": (5,)}
    ),
    "attention": Case(
        _attention,
        {"e": (9, 4), "pos": (5, 4), "q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "o": (2, 3, 4)}
        | {"g": (4,), "b": (4,), "c": (9, 6)},
        (5,),
        ("embedding", "bias", *["dense"] * 4, "scale", "bias", "dense", "dense"),
        tokens=9,
    ),
    "recurrent": Case(
        _recurrent,
        {"w": (3, 4), "u": (4, 4), "b": (4,), "g": (4,), "h0": (4,), "c": (4, 2)},
        (6, 3),
        ("generic", "dense", "dense", "bias", "scale", "dense"),
    ),
    "nested scans": Case(
        _nested_scans, {"w": (3, 4), "u": (4, 4), "c": (4, 2)}, (2, 3, 3), ("dense", "dense", "dense")
    ),
    "scan over layers": Case(
        _scan_over_layers, {"layers": (3, 4, 4), "b": (4,), "c": (4, 2)}, (4,), ("generic", "bias", "dense")
    ),
    "scan of parameters": Case(_scan_of_parameters, {"w": (4, 4), "c": (4, 2)}, (4,), ("generic", "dense")),
    "scan with a counter": Case(
        _scan_with_a_counter,
        {"layers": (3, 4, 4), "g": (4,), "c": (4, 2)},
        (4,),
        ("generic", "scale", "dense"),
    ),
    "weight norm": Case(_weight_norm, {"v": (5, 4), "g": (4,), "c": (4, 6)}, (5,), ("dense", "dense")),
    "no rule": Case(
        _no_rule,
        {"z": (2,), "d": (2,), "w": (5, 2), "t": (2,), "q": (4,)},
        (5,),
        ("generic", "generic", "generic", "generic", "scale", "bias"),
    ),
    "nested calls": Case(_nested_calls, {"a": (5, 4), "b": (4, 3), "c": (3,)}, (5,), ("dense", "dense", "generic")),
}


def _make(case: Case, seed: int = 0):
    rng = np.random.default_rng(seed)

    def draw(shape):
        return (rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))).astype(np.float32)

    def inputs(n):
        shape = (n, *case.x)
        return (rng.integers(0, case.tokens, shape) if case.tokens else rng.normal(size=shape).astype(np.float32),)

    def apply_fn(p, s, x):
        return case.fn(p, s, x[0])

    params, frozen = ({k: draw(shape) for k, shape in v.items()} for v in (case.params, case.frozen))
    return apply_fn, params, frozen, inputs(4), inputs(3)


def _relative_error(got, want):
    assert got.shape == want.shape
    return np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want))


def _random_axes(rng, rank):
    sort = rng.integers(0, 3, rank - 1)  # kept, traced, diagonal
    return {"trace_axes": [int(a) + 1 for a in np.flatnonzero(sort == 1)]} | {
        "diagonal_axes": [int(a) + 1 for a in np.flatnonzero(sort == 2)]
    }


@pytest.mark.parametrize("name", CASES)
def test_equals_the_float64_jacobian(name):
    fn, params, frozen, x1, x2 = _make(CASES[name])
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=()))
    want = reference_ntk(fn, params, frozen, x1, x2, trace_axes=(1,))
    assert _relative_error(kernel(params, frozen, x1, x2), want) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_sites_get_the_expected_rules(name):
    case = CASES[name]
    fn, params, frozen, x, _ = _make(case)
    features = ExampleFeatures(fn, params, frozen, x, counts=(4, 4), trace_axes=(1,), diagonal_axes=())
    assert tuple(site.rule.name for site in features.sites) == case.rules


@pytest.mark.parametrize("seed", range(12))
def test_any_axes(seed):
    """Outputs of random shapes, each of their axes kept, traced or diagonal at random."""
    rng = np.random.default_rng(seed)
    name = ["mlp", "tied", "conv", "batch norm", "attention", "weight norm"][seed % 6]
    fn, params, frozen, x1, x2 = _make(CASES[name], seed)
    shape = [(6,), (2, 3), (3, 2), (1, 6), (2, 1, 3)][rng.integers(5)]

    def reshaped(p, s, x):
        return fn(p, s, x).reshape(-1, *(shape if fn(p, s, x).ndim == 2 else (3, *shape)))

    rank = 1 + len(shape) + (name == "batch norm")
    axes = _random_axes(rng, rank)
    kernel = jax.jit(layerwise_kernel_fn(reshaped, **axes))
    want = reference_ntk(reshaped, params, frozen, x1, x2, **axes)
    assert _relative_error(kernel(params, frozen, x1, x2), want) < 2e-6


@pytest.mark.parametrize("form", ["explicit", "gram"])
@pytest.mark.parametrize("name", ["mlp", "conv", "batched weights", "tied", "attention", "recurrent", "nested scans"])
def test_every_form_gives_the_same(name, form, monkeypatch):
    """Whatever the cost model prefers."""
    costs = (0.0, 1.0) if form == "gram" else (1.0, 0.0)
    monkeypatch.setattr(Shape, "gram_cost", lambda *args, **kwargs: costs[0])
    monkeypatch.setattr(Shape, "explicit_cost", lambda *args, **kwargs: costs[1])
    fn, params, frozen, x1, x2 = _make(CASES[name])
    features = ExampleFeatures(fn, params, frozen, x1, counts=(4, 3), trace_axes=(), diagonal_axes=(1,))
    forms = {c.form for c in features.components}
    assert forms <= {"explicit", "joined"} if form == "explicit" else forms & {"gram", "index"}
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(), diagonal_axes=(1,)))
    want = reference_ntk(fn, params, frozen, x1, x2, trace_axes=(), diagonal_axes=(1,))
    assert _relative_error(kernel(params, frozen, x1, x2), want) < 1e-6


@pytest.mark.parametrize("axes", [([1], [2]), ([2], [1]), ([1, 2], []), ([], [1, 2]), ([1], []), ([], [])])
def test_few_outputs_at_a_time(axes):
    """Little memory means more passes, of numbers of outputs that need not divide them."""
    fn, params, frozen, x1, x2 = _make(CASES["conv"])

    def reshaped(p, s, x):
        return jnp.pad(fn(p, s, x), ((0, 0), (0, 1))).reshape(-1, 7, 1) * jnp.array([1.0, 2.0, 3.0])

    names = dict(zip(("trace_axes", "diagonal_axes"), axes, strict=True))
    features = ExampleFeatures(reshaped, params, frozen, x1, counts=(4, 3), **names)
    memory = (1 << 20) * 7 // features.outputs_at_once(1, 1 << 20) * 5
    assert features.outputs_at_once(7, memory) in (4, 5)
    kernel = jax.jit(layerwise_kernel_fn(reshaped, memory=memory, **names))
    want = reference_ntk(reshaped, params, frozen, x1, x2, **names)
    assert _relative_error(kernel(params, frozen, x1, x2), want) < 1e-6


@pytest.mark.parametrize("name", ["mlp", "conv", "batched weights", "tied", "attention", "embedding", "recurrent"])
def test_symbolic_numbers_of_examples(name):
    """One program for all: what is decided by numbers of examples is decided for some."""
    fn, params, frozen, x1, x2 = _make(CASES[name])
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=()))
    sides = [
        tuple(jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for a in x)
        for n, x in zip(jax.export.symbolic_shape("n1, n2"), (x1, x2), strict=True)
    ]
    exported = jax.export.export(kernel, platforms=["cpu", "cuda"])(params, frozen, *sides)
    want = reference_ntk(fn, params, frozen, x1, x2, trace_axes=(1,))
    assert _relative_error(exported.call(params, frozen, x1, x2), want) < 1e-6


@pytest.mark.parametrize("axes", [([1], []), ([], [1])])
def test_as_many_outputs_at_a_time_as_caches_like(axes, monkeypatch):
    """On CPUs: all where little is derived, else few, and no more parts than that needs; all on others."""
    outputs = 8

    def fn(p, s, x):
        return jnp.tanh(jnp.tanh(x[0] @ p["a"]) @ p["b"]).mean(1) @ p["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 64), "b": (64, 64), "c": (64, outputs)}
    params = {k: rng.normal(size=shape).astype(np.float32) / 8 for k, shape in shapes.items()}
    x1, x2 = ((rng.normal(size=(n, 32, 3)).astype(np.float32),) for n in (4, 3))
    names = dict(zip(("trace_axes", "diagonal_axes"), axes, strict=True))

    def features(how):
        return ExampleFeatures(fn, params, {}, x1, counts=(4, 3), how=how, **names)

    assert features(lowering.DEFAULT).outputs_in_cache(4) == outputs
    assert features(lowering.CPU).outputs_in_cache(4) == outputs
    assert features(lowering.CPU).outputs_in_cache(2000) < outputs
    assert outputs % features(lowering.CPU).outputs_in_cache(2000) == 0

    monkeypatch.setattr(lowering, "CPU", dataclasses.replace(lowering.CPU, cache=4 * 32 * 64 * 4 * 2))
    monkeypatch.setattr(features_module, "OPERATION", 0)
    assert features(lowering.CPU).outputs_in_cache(4) == 2
    kernel = jax.jit(layerwise_kernel_fn(fn, **names))
    text = kernel.trace(params, {}, x1, x2).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.tanh") == 4  # those of the forward passes of both sides, not of each part
    want = reference_ntk(fn, params, {}, x1, x2, **names)
    assert _relative_error(kernel(params, {}, x1, x2), want) < 1e-6


def test_convolutions_have_channels_last_on_cpus():
    """Derivatives' too, and in loops over outputs: those of another order would be 10 times slower there."""
    fn, params, frozen, x1, x2 = _make(CASES["convs of many positions"])
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=(), memory=1))
    traced = kernel.trace(params, frozen, x1, x2)
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    orders = re.findall(r"stablehlo\.convolution.*?dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
    assert "stablehlo.while" in text
    assert set(orders) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    assert len(orders) >= 3


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
    fn, params, frozen, x, _ = _make(CASES["conv"])
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


@pytest.mark.parametrize(
    "axes",
    [
        {"trace_axes": (2,), "diagonal_axes": ()},
        {"trace_axes": (2,), "diagonal_axes": (1,)},
        {"trace_axes": (), "diagonal_axes": ()},
    ],
)
def test_coupled_examples(axes):
    def fn(p, s, x):
        y = jnp.tanh(x[0] @ p["w"] + p["b"])
        return ((y - y.mean(0)) * p["g"] @ p["c"]).reshape(-1, 2, 3)

    rng = np.random.default_rng(0)
    shapes = {"w": (5, 4), "b": (4,), "g": (4,), "c": (4, 6)}
    params = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
    x1, x2 = ((rng.normal(size=(n, 5)).astype(np.float32),) for n in (4, 3))
    kernel = jax.jit(layerwise_kernel_fn(fn, coupled=True, **axes))
    want = reference_ntk(fn, params, {}, x1, x2, coupled=True, **axes)
    assert _relative_error(kernel(params, {}, x1, x2), want) < 2e-6
    assert _relative_error(kernel(params, {}, x1), reference_ntk(fn, params, {}, x1, coupled=True, **axes)) < 2e-6


def test_the_basis_numbers_diagonal_then_traced_then_kept_outputs():
    axes = OutputAxes((2, 3, 4), trace_axes=[0], diagonal_axes=[2])
    assert (axes.diagonal, axes.traced, axes.kept, axes.count) == (4, 2, 3, 24)
    basis = np.asarray(axes.basis(jnp.float32))
    assert basis.shape == (4, 2, 3, 2, 3, 4)
    for d, c, k in np.ndindex(4, 2, 3):
        assert basis[d, c, k, c, k, d] == 1
        assert basis[d, c, k].sum() == 1


@pytest.mark.parametrize("rows", [(1, 1), (2, 3), (3, 8), (4, 4)])
def test_long_sums_are_accurate(rows):
    """However few rows there are: XLA:CPU alone would be off by 5e-5."""
    rng = np.random.default_rng(0)
    g1, g2 = (rng.uniform(size=(n, 1, 1, 250_001)).astype(np.float32) for n in rows)
    expected = np.einsum("nm,lm->nl", g1[:, 0, 0].astype(np.float64), g2[:, 0, 0].astype(np.float64))
    result = np.asarray(jax.jit(contract.explicit)(g1, g2))[:, :, 0, 0, 0]
    assert np.max(np.abs(result - expected)) < 2e-6 * np.max(expected)
