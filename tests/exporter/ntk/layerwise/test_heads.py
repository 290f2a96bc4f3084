"""Last layers of many traced outputs are narrowed, and the kernel is that of all of them."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_engine import LayerwiseParts, layerwise_kernel_fn
from jax import export

from exporter.compat.jax_names import enable_x64
from exporter.ntk.layerwise import heads
from exporter.ntk.layerwise.features import ExampleFeatures
from exporter.ntk.precision import in_float64
from exporter.ntk.reference import reference_ntk

F, V = 4, 64
LAYER = {"w": (F, V), "b": (V,)}


def _hidden(p, x):
    return jnp.tanh(x @ p["a"])


def _called(p, s, x):
    return jax.jit(lambda z, w: jax.checkpoint(jnp.dot)(z, w) + p["b"])(_hidden(p, x), p["w"])


def _reshaped(p, s, x):
    z = _hidden(p, x)
    y = (z.reshape(-1, F) @ p["w"]).reshape(*z.shape[:-1], V)
    return (y + s["shift"] + p["b"])[..., None].reshape(len(x), 3, 2, V)


def _weight_norm(p, s, x):
    return _hidden(p, x) @ (p["w"] / jnp.linalg.norm(p["w"], axis=0))


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of parameters, constants and an input (n, *x), and which axes of its output are traced."""

    fn: Callable
    params: dict[str, tuple[int, ...]]
    frozen: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    x: tuple[int, ...] = (5,)
    trace: tuple[int, ...] = (-1,)
    diagonal: tuple[int, ...] = ()
    before: tuple[int, int] = (5, F)

    def make(self, seed=0):
        rng = np.random.default_rng(seed)
        params = {"a": self.before, **self.params}
        params, frozen = (
            {k: (rng.normal(size=shape) / np.sqrt(max(shape))).astype(np.float32) for k, shape in v.items()}
            for v in (params, self.frozen)
        )
        x1, x2 = ((rng.normal(size=(n, *self.x)).astype(np.float32),) for n in (4, 3))
        return lambda p, s, x: self.fn(p, s, x[0]), params, frozen, x1, x2

    @property
    def axes(self):
        return {"trace_axes": self.trace, "diagonal_axes": self.diagonal}


NARROWED = {
    "classifier": Case(lambda p, s, x: _hidden(p, x) @ p["w"] + p["b"], LAYER),
    "without a bias": Case(lambda p, s, x: _hidden(p, x) @ p["w"], {"w": (F, V)}),
    "in calls": Case(_called, LAYER),
    "of each position": Case(_reshaped, LAYER, {"shift": (V,)}, (6, 5)),
    "of each position, one diagonal": Case(_reshaped, LAYER, {"shift": (V,)}, (6, 5), diagonal=(1,)),
    "of all positions together": Case(_reshaped, LAYER, {"shift": (V,)}, (6, 5), trace=(1, 2, 3)),
    "transposed": Case(lambda p, s, x: _hidden(p, x) @ p["w"].T + p["b"].reshape(1, V), {"w": (V, F), "b": (V,)}),
    "of two axes": Case(
        lambda p, s, x: jnp.einsum("nij,jvi->nv", _hidden(p, x).reshape(-1, 2, 2), p["w"]), {"w": (2, V, 2)}
    ),
    "frozen": Case(lambda p, s, x: _hidden(p, x) @ s["w"] + jnp.tanh(s["b"]), {}, LAYER),
    "frozen, but not its bias": Case(lambda p, s, x: _hidden(p, x) @ s["w"] + p["b"], {"b": (V,)}, {"w": (F, V)}),
    "trained alone": Case(lambda p, s, x: jnp.tanh(x @ s["c"]) @ p["w"], {"w": (F, V)}, {"c": (5, F)}),
    "as many positions as columns": Case(lambda p, s, x: _hidden(p, x) @ p["w"] + p["b"], LAYER, x=(V, 5)),
}
AS_THEY_ARE = {
    "columns are kept": Case(_reshaped, LAYER, {"shift": (V,)}, (6, 5), trace=(1,)),
    "columns are diagonal": Case(_reshaped, LAYER, {"shift": (V,)}, (6, 5), trace=(1,), diagonal=(3,)),
    "columns and positions are one axis": Case(
        lambda p, s, x: (_hidden(p, x) @ p["w"]).reshape(len(x), -1), {"w": (F, V)}, x=(2, 5)
    ),
    "not the last": Case(lambda p, s, x: jax.nn.softmax(_hidden(p, x) @ p["w"]), {"w": (F, V)}),
    "not wide": Case(lambda p, s, x: _hidden(p, x) @ p["w"], {"w": (F, F)}),
    "used twice": Case(lambda p, s, x: jnp.tanh(_hidden(p, x) @ p["w"].T) @ p["w"], {"w": (F, V)}, before=(5, V)),
    "made of a variable": Case(_weight_norm, {"w": (F, V)}),
    "made of a frozen one": Case(lambda p, s, x: _hidden(p, x) @ jnp.tanh(s["w"]) + p["b"], {"b": (V,)}, {"w": (F, V)}),
    "a constant": Case(lambda p, s, x: _hidden(p, x) @ jnp.ones((F, V)), {}),
    "a bias of one number": Case(lambda p, s, x: _hidden(p, x) @ p["w"] + p["b"], {"w": (F, V), "b": (1,)}),
    "a bias of positions": Case(
        lambda p, s, x: _hidden(p, x) @ p["w"] + p["b"][:, None], {"w": (F, V), "b": (V,)}, x=(V, 5)
    ),
    "two products": Case(lambda p, s, x: _hidden(p, x) @ p["w"] + x @ p["v"], {"w": (F, V), "v": (5, V)}),
    "not many": Case(lambda p, s, x: _hidden(p, x) @ p["w"], {"w": (F, V - 1)}),
    "a product of data": Case(
        lambda p, s, x: jnp.einsum("nif,nfv->niv", _hidden(p, x), x[:, :F]), {}, x=(V, V), before=(V, F)
    ),
}


def _features(case, arguments):
    fn, params, frozen, x, _ = arguments
    return ExampleFeatures(fn, params, frozen, x, counts=(4, 3), **case.axes, narrow=True)


def _columns(features):
    return features.narrowed.closed.out_avals[0].shape[-1]


def _relative_error(got, want):
    assert got.shape == want.shape
    return np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want))


@functools.cache
def _reference(name):
    fn, params, frozen, x1, x2 = NARROWED[name].make()
    return reference_ntk(fn, params, frozen, x1, x2, **NARROWED[name].axes)


@pytest.mark.parametrize("name", NARROWED)
def test_narrowed(name):
    case = NARROWED[name]
    arguments = fn, params, frozen, x1, x2 = case.make()
    assert _columns(_features(case, arguments)) == F
    kernel = jax.jit(layerwise_kernel_fn(fn, **case.axes))(params, frozen, x1, x2)
    assert _relative_error(kernel, _reference(name)) < 1e-6


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_left_as_they_are(name):
    """And their kernels then are those of any function."""
    case = AS_THEY_ARE[name]
    assert _features(case, case.make()).narrowed is None


def test_of_coupled_examples():
    """Where the whole batch is the one example, and its axis one of the output's."""

    def fn(p, s, x):
        z = _hidden(p, x[0])
        return (z - z.mean(0)) @ p["w"] + p["b"]

    _, params, frozen, x1, x2 = NARROWED["classifier"].make()
    features = ExampleFeatures(
        fn, params, frozen, tuple(a[None] for a in x1), counts=None, trace_axes=(1,), diagonal_axes=(), narrow=True
    )
    assert _columns(features) == F
    kernel = jax.jit(layerwise_kernel_fn(fn, trace_axes=(1,), diagonal_axes=(), coupled=True))(params, frozen, x1, x2)
    want = reference_ntk(fn, params, frozen, x1, x2, trace_axes=(1,), coupled=True)
    assert _relative_error(kernel, want) < 1e-6


SIDES = slice(4), slice(4, None)


@pytest.mark.parametrize(
    "name", ["in calls", "of each position, one diagonal", "frozen, but not its bias", "trained alone", "of two axes"]
)
def test_in_parts(name):
    """Of one R, which `replace` makes for features of all programs."""
    case = NARROWED[name]
    fn, params, frozen, x1, x2 = case.make()
    parts = LayerwiseParts(fn, params, frozen, x1, counts=(4, 3), **case.axes).fitted((4, 3), passes=2)
    assert parts.passes == (1 if case.diagonal else 2)
    others = jax.jit(parts.replace)({path: {**params, **frozen}[path] for path in parts.replaced})
    variables = [{path: others.get(path, v) for path, v in part.items()} for part in (params, frozen)]
    shapes = [jax.tree.map(lambda v: (v.shape, v.dtype), part) for part in (variables, list(parts.variable_specs))]
    assert shapes[0] == shapes[1]
    features, contract = map(jax.jit, (parts.features, parts.contract))
    kernel = 0
    for number in range(parts.passes):
        both = features(*variables, (np.concatenate([*x1, *x2]),), number)
        kernel += contract(*variables, *(jax.tree.map(lambda a, rows=rows: a[rows], both) for rows in SIDES))
    assert _relative_error(kernel, _reference(name)) < 1e-6


@pytest.mark.parametrize("outputs", [1, 3])
def test_some_outputs_at_a_time(outputs, monkeypatch):
    """With R made once, before the loop over parts of the narrower layer's outputs."""
    monkeypatch.setattr(ExampleFeatures, "outputs_in_cache", lambda *args: outputs)
    case = NARROWED["classifier"]
    fn, params, frozen, x1, x2 = case.make()
    kernel = jax.jit(layerwise_kernel_fn(fn, **case.axes))(params, frozen, x1, x2)
    assert _relative_error(kernel, _reference("classifier")) < 1e-6


def test_calls_no_library():
    """Which TensorFlow would not have: JAX's own decompositions are such calls."""
    fn, params, frozen, x1, x2 = NARROWED["classifier"].make()
    kernel = jax.jit(layerwise_kernel_fn(fn, **NARROWED["classifier"].axes))
    exported = export.export(kernel, platforms=("cpu", "cuda", "tpu"))(params, frozen, x1, x2)
    assert "while" in exported.mlir_module()
    assert "custom_call" not in exported.mlir_module()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [0, 1, 7, 40, 100])
def test_factor(rank, dtype):
    """Of matrices of any rank, with rows of very different sizes."""
    rng = np.random.default_rng(rank)
    w = rng.normal(size=(40, rank)) * 10.0 ** rng.uniform(-3, 3, (40, 1))
    with enable_x64(dtype == np.float64):
        m = jnp.asarray(w @ w.T, dtype)
        r = np.asarray(jax.jit(heads.factor)(m), np.float64)
    np.testing.assert_allclose(r @ r.T, m, rtol=0, atol=4 * np.finfo(dtype).eps * np.max(np.abs(m)))


def test_factor_traced_in_float32_and_evaluated_in_float64():
    """As kernels with precision float64 are."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(40, 50)) * 10.0 ** rng.uniform(-6, 0, (40, 1))
    with enable_x64():
        r = np.asarray(jax.jit(in_float64(heads.factor, jax.ShapeDtypeStruct((40, 40), np.float32)))(w @ w.T))
    assert np.max(np.abs(r @ r.T - w @ w.T)) < 1e-14 * np.max(w @ w.T)


def test_layers_whose_columns_are_alike():
    """W of rank 1, of which a Cholesky decomposition without pivots would make NaNs."""
    case = NARROWED["classifier"]
    fn, params, frozen, x1, x2 = case.make()
    params["w"][:] = params["w"][:1]
    kernel = jax.jit(layerwise_kernel_fn(fn, **case.axes))(params, frozen, x1, x2)
    assert _relative_error(kernel, reference_ntk(fn, params, frozen, x1, x2, **case.axes)) < 1e-6
