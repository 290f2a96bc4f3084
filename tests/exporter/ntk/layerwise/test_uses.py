"""Which derivatives are in memory, which slices are a whole, and which biases are added to products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_engine import layerwise_kernel_fn
from jax import lax

from exporter.ntk.layerwise.contract import Shape
from exporter.ntk.layerwise.features import ExampleFeatures
from exporter.ntk.layerwise.uses import CALLS, called, kept_derivatives, only_scaled, tilings
from exporter.ntk.reference import reference_ntk

A, B = (jax.ShapeDtypeStruct((3, 3), jnp.float32) for _ in range(2))


def kept(fn):
    """The names of the equations of fn(a, b) whose outputs' derivatives are in memory, and of the others."""
    jaxpr = jax.make_jaxpr(fn)(A, B).jaxpr
    variables = {*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)}
    found = kept_derivatives(jaxpr, variables)
    names = ([], [])
    for eqn in jaxpr.eqns:
        names[eqn.outvars[0] not in found].append(eqn.primitive.name)
    return names


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        # exp's derivative is a product's; cos' is computed from exp's.
        (lambda a, b: jnp.exp(jnp.cos(a)) @ b, (["exp", "dot_general"], ["cos"])),
        (lambda a, b: (2.0 * jnp.exp(a)).T @ b, (["exp", "mul", "transpose", "dot_general"], [])),
        # A residual: where two uses meet; and before it, where only the sum uses it.
        (lambda a, b: (lambda y: y + jnp.sin(y))(jnp.exp(a)), (["sin", "add"], ["exp"])),
        (lambda a, b: jnp.sin(jnp.exp(a) + jnp.cos(b)), (["exp", "cos", "sin"], ["add"])),
        # A product of two things scales each derivative by the other: not a sum.
        (lambda a, b: jnp.exp(a) * jnp.cos(b), (["mul"], ["exp", "cos"])),
        (lambda a, b: (jnp.exp(a) @ b, jnp.cos(a) @ b), (["exp", "dot_general", "cos", "dot_general"], [])),
        (lambda a, b: (lambda y: y @ b + y.T)(jnp.exp(a)), (["dot_general", "transpose", "add"], ["exp"])),
        # A sum over an axis computes its derivative by repeating.
        (lambda a, b: jnp.exp(a).sum(0), (["reduce_sum"], ["exp"])),
    ],
)
def test_derivatives_in_memory(fn, expected):
    assert tuple(map(sorted, kept(fn))) == tuple(map(sorted, expected))


def test_calls_are_looked_through_each_time():
    """A value inside a function has its derivative in memory if it has wherever the function is called."""
    called = jax.jit(jnp.exp)

    def inside(fn):
        jaxpr = jax.make_jaxpr(fn)(A, B).jaxpr
        (inner, *_) = (eqn.params["jaxpr"].jaxpr for eqn in jaxpr.eqns if eqn.primitive.name in ("pjit", "jit"))
        everything = {v for j in (jaxpr, inner) for v in (*j.invars, *(v for eqn in j.eqns for v in eqn.outvars))}
        return inner.eqns[0].outvars[0] in kept_derivatives(jaxpr, everything)

    assert inside(lambda a, b: called(a) @ called(b))
    assert not inside(lambda a, b: called(a) @ jnp.sin(called(b)))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda a, b: jnp.exp(a) * b, {"exp"}),
        (lambda a, b: jnp.exp(a) * jnp.cos(b), {"exp", "cos"}),
        (lambda a, b: 2.0 * jnp.exp(a) + b, {"exp"}),
        (lambda a, b: (lambda y: y * b + y)(jnp.exp(a)), set()),
        (lambda a, b: (lambda y: (y * b, y))(jnp.exp(a)), set()),
        (lambda a, b: jax.jit(lambda a: jnp.exp(a) * b)(jnp.cos(a)), {"exp"}),
        (lambda a, b: jnp.exp(a) @ b, set()),
    ],
)
def test_only_scaled(fn, expected):
    def names(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in CALLS:
                yield from names(called(eqn)[0])
            elif eqn.outvars[0] in scaled:
                yield eqn.primitive.name

    jaxpr = jax.make_jaxpr(fn)(A, B).jaxpr
    scaled = only_scaled(jaxpr)
    assert set(names(jaxpr)) == expected


def _conv(p, x):
    return lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NHWC"))


def _recurrent(p, x):
    def step(h, x):
        return jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"]), None

    return lax.scan(step, jnp.zeros((x.shape[0], 4)), x.swapaxes(0, 1))[0]


def _residual(p, x):
    h = jnp.exp(x * p["g"])
    return jnp.sin(h + (h @ p["w"] + p["b"]))


def _used_twice(p, x):
    y = x @ p["w"]
    return jnp.sin(y) + (y + p["b"])


# By name: a function of (6, 8) numbers that slices them, and the sizes of the parts if together these are the whole.
SLICES = {
    "gates": (lambda z: jnp.tanh(z[:, :4]) * z[:, 4:], (4, 4)),
    "in another order": (lambda z: (z[3:, :], z[1:3, :], z[:1, :]), (1, 2, 3)),
    "and the whole": (lambda z: (z[:, :2], z.sum(), z[:, 2:]), (2, 6)),
    "one part": (lambda z: z[:, :4], None),
    "a gap": (lambda z: (z[:, :3], z[:, 4:]), None),
    "not the end": (lambda z: (z[:, :3], z[:, 3:7]), None),
    "overlapping": (lambda z: (z[:, :5], z[:, 3:]), None),
    "a part twice": (lambda z: (z[:, :4], z[:, 4:], z[:, :4]), None),
    "steps": (lambda z: (lax.slice(z, (0, 0), (6, 4), (1, 2)), z[:, 4:]), None),
    "two axes": (lambda z: (z[:3, :4], z[3:, 4:]), None),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_that_are_a_whole(name):
    fn, expected = SLICES[name]
    jaxpr = jax.make_jaxpr(fn)(jnp.ones((6, 8))).jaxpr
    found = tilings(jaxpr)
    assert {tiling.sizes for tiling in found.values()} == ({expected} if expected else set())
    slices = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if eqn.primitive.name == "slice"}
    assert set(found) == (set(slices) if expected else set())
    for tiling in found.values():
        starts = [slices[part].params["start_indices"][tiling.axis] for part in tiling.parts]
        assert starts == sorted(starts)


def test_derivatives_of_gates_are_concatenated():
    """Not padded and added; with other uses of the gates' sum, and of parameters' slices, the kernel is right."""

    def apply_fn(p, s, x):
        u, v = p["u"][:, :4], p["u"][:, 4:]
        z = x[0] @ p["w"]
        a, b, c = z[:, 4:6], z[:, :4], z[:, 6:]
        return (jnp.tanh(b) * jax.nn.sigmoid(b) + z[:, 1:5]) @ (u @ v.T) + jnp.sum(a * c * z.sum(-1, keepdims=True))

    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=v).astype(np.float32) for k, v in {"w": (5, 8), "u": (4, 8)}.items()}
    x = (rng.normal(size=(3, 5)).astype(np.float32),)
    kernel = jax.jit(layerwise_kernel_fn(apply_fn, trace_axes=(-1,), diagonal_axes=()))
    want = reference_ntk(apply_fn, params, {}, x, x, trace_axes=(-1,), diagonal_axes=())
    assert np.max(np.abs(kernel(params, {}, x, x) - want)) < 1e-6 * np.max(np.abs(want))

    def gates(p, s, x):
        z = x[0] @ p["w"]
        return jnp.tanh(z[:, :4]) * z[:, 4:]

    kernel = layerwise_kernel_fn(gates, trace_axes=(-1,), diagonal_axes=())
    program = str(jax.make_jaxpr(kernel)(params, {}, x, x))
    assert "= concatenate[" in program
    assert "= pad[" not in program


# By name: a function of parameters and data, shapes of both, the biases that become rows of products' parameters.
BIASES = {
    "output": (lambda p, x: x @ p["w"] + p["b"], {"w": (3, 4), "b": (4,)}, (3,), ["b"]),
    "before a product": (
        lambda p, x: jnp.sin((x @ p["w"] + p["b"]) @ p["c"]),
        {"w": (3, 4), "b": (4,), "c": (4, 2)},
        (3,),
        ["b"],
    ),
    "between functions": (
        lambda p, x: jnp.sin(jnp.sin(x @ p["v"]) @ p["w"] + p["b"]),
        {"v": (3, 3), "w": (3, 4), "b": (4,)},
        (5, 3),
        [],
    ),
    "before a function, of inputs": (
        lambda p, x: jnp.sin(x @ p["w"] + p["b"]),
        {"w": (3, 4), "b": (4,)},
        (5, 3),
        ["b"],
    ),
    "before a function, one position": (
        lambda p, x: jnp.sin(x @ p["w"] + p["b"]),
        {"w": (3, 4), "b": (4,)},
        (3,),
        ["b"],
    ),
    "residual": (_residual, {"w": (3, 3), "b": (3,), "g": (3,)}, (3,), ["b"]),
    "reshaped": (
        lambda p, x: (x @ p["w"]).reshape(-1, 5, 3, 2) + p["b"],
        {"w": (3, 6), "b": (3, 2)},
        (5, 3),
        ["b"],
    ),
    "reshaped, by position": (
        lambda p, x: (x @ p["w"]).reshape(-1, 3, 5, 4) + p["b"],
        {"w": (2, 4), "b": (5, 1)},
        (15, 2),
        [],
    ),
    "by position": (lambda p, x: x @ p["w"] + p["b"], {"w": (3, 4), "b": (5, 1)}, (5, 3), []),
    "by position and column": (lambda p, x: x @ p["w"] + p["b"], {"w": (3, 4), "b": (5, 4)}, (5, 3), []),
    "by some columns": (
        lambda p, x: jnp.einsum("ni,ijk->njk", x, p["w"]) + p["b"],
        {"w": (3, 4, 2), "b": (2,)},
        (3,),
        [],
    ),
    "one number": (lambda p, x: x @ p["w"] + p["b"], {"w": (3, 4), "b": (1,)}, (3,), []),
    "left operand": (
        lambda p, x: jnp.einsum("ji,nti->jnt", p["w"], x).transpose(1, 0, 2) + p["b"],
        {"w": (4, 3), "b": (4, 1)},
        (5, 3),
        [],
    ),
    "batched": (
        lambda p, x: (lax.dot_general(x, p["w"], (((2,), (1,)), ((1,), (0,)))) + p["b"]).transpose(1, 0, 2),
        {"w": (5, 3, 4), "b": (5, 1, 4)},
        (5, 3),
        ["b"],
    ),
    "used twice": (_used_twice, {"w": (3, 4), "b": (4,)}, (3,), []),
    "two biases": (lambda p, x: x @ p["w"] + p["a"] + p["b"], {"w": (3, 4), "a": (4,), "b": (4,)}, (3,), ["b"]),
    "subtracted": (lambda p, x: x @ p["w"] - p["b"], {"w": (3, 4), "b": (4,)}, (3,), []),
    "tied": (
        lambda p, x: (jnp.sin(x @ p["w"] + p["b"]) @ p["w"] + p["b"]) @ p["w"],
        {"w": (3, 3), "b": (3,)},
        (3,),
        [],
    ),
    "much data": (lambda p, x: x @ p["w"] + p["b"], {"w": (9, 2), "b": (2,)}, (9,), []),
    "convolution": (lambda p, x: _conv(p, x) + p["b"], {"w": (4, 3, 2, 2), "b": (4,)}, (3, 5, 5), ["b"]),
    "recurrent": (_recurrent, {"w": (3, 4), "u": (4, 4), "b": (4,)}, (7, 3), ["b"]),
}


@pytest.mark.parametrize("name", BIASES)
def test_biases_of_products(name, monkeypatch):
    """They are where they can be, and the kernel is right in either case."""
    fn, shapes, shape, expected = BIASES[name]
    rng = np.random.default_rng(0)
    params = {k: (rng.normal(size=v) / 2).astype(np.float32) for k, v in shapes.items()}
    x1, x2 = ((rng.normal(size=(n, *shape)).astype(np.float32),) for n in (4, 3))
    axes = {"trace_axes": (), "diagonal_axes": (1,)}

    def apply_fn(p, s, x):
        return fn(p, x[0])

    want = reference_ntk(apply_fn, params, {}, x1, x2, **axes)
    for form in ("explicit", "gram"):
        for other in ("explicit", "gram"):
            monkeypatch.setattr(Shape, f"{other}_cost", lambda *args, cost=float(other != form), **kwargs: cost)
        features = ExampleFeatures(apply_fn, params, {}, x1, counts=(4, 3), **axes)
        rows = [c.bias for c in features.components if c.bias is not None]
        assert [features.variables[leaf] for k in rows for leaf in features.sites[k].param.leaves] == expected
        if form == "explicit" or expected:  # else it is like any kernel in this form
            kernel = jax.jit(layerwise_kernel_fn(apply_fn, **axes))(params, {}, x1, x2)
            assert np.max(np.abs(kernel - want)) < 1e-6 * np.max(np.abs(want)), form
