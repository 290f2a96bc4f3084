"""The engine's count of operations against a count of the products in what it traces."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from exporter.compat.jax_names import ClosedJaxpr, Jaxpr, dce_jaxpr
from exporter.ntk.layerwise.engine import LayerwiseParts

N1, N2 = 5, 3


def _mlp(p, s, x):
    return jnp.tanh(jnp.tanh(x[0] @ p["a"]) @ p["b"]) @ p["c"]


def _conv(p, s, x):
    y = lax.conv_general_dilated(x[0], p["a"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = lax.conv_general_dilated(jnp.tanh(y), p["b"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(y).reshape(len(y), -1) @ p["c"]


def _linear_conv(p, s, x):
    y = lax.conv_general_dilated(x[0], p["a"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = lax.conv_general_dilated(jnp.tanh(y), p["b"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.reshape(len(y), -1) @ p["c"]


CASES = {
    "mlp": (_mlp, {"a": (400, 300), "b": (300, 300), "c": (300, 7)}, (400,)),
    "linear conv": (_linear_conv, {"a": (3, 3, 2, 24), "b": (3, 3, 24, 6), "c": (216, 7)}, (10, 10, 2)),
    "conv": (_conv, {"a": (3, 3, 2, 8), "b": (3, 3, 8, 6), "c": (216, 7)}, (10, 10, 2)),
}


def parts_of(name, trace_axes=(1,)):
    fn, shapes, x = CASES[name]
    params = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}
    x = (jax.ShapeDtypeStruct((1, *x), np.float32),)
    # Not for CPUs: what is traced for these computes the same in other words.
    options = {"counts": (N1, N2), "trace_axes": trace_axes, "diagonal_axes": (), "platforms": ["cuda"]}
    return LayerwiseParts(fn, params, {}, x, **options), params, x


def products(jaxpr):
    """Floating point operations of all matrix products and convolutions."""
    total = 0.0
    for eqn in jaxpr.eqns:
        for sub in jax.tree.leaves(eqn.params):
            if isinstance(sub, Jaxpr | ClosedJaxpr):
                total += products(getattr(sub, "jaxpr", sub))
        out = math.prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += 2 * out * math.prod(eqn.invars[0].aval.shape[a] for a in contracted)
        if eqn.primitive.name == "conv_general_dilated":
            kernel, dn = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            total += 2 * out * math.prod(kernel) / kernel[dn.rhs_spec[0]]
    return total


# What is done once for each side, as all examples share it: of "b" the derivative of its 64 inputs' 24 channels from
# its 6 channels, for 7 outputs, and their products for each pair of its 36 outputs.
SHARED = {"linear conv": 2 * 7 * (2 * 64 * 9 * 24 * 6 + 2 * 36**2 * 6)}


@pytest.mark.parametrize(("name", "tolerance"), [("mlp", 0.1), ("conv", 0.25), ("linear conv", 0.1)])
def test_counts_are_those_of_the_traced_products(name, tolerance):
    """But for the last layer's derivatives, and those of convolutions at the margins."""
    parts, params, x = parts_of(name)
    counted = 0.0
    values = []
    for n in (N1, N2):
        batch = tuple(jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for a in x)
        closed = jax.make_jaxpr(lambda params, batch: parts.features(params, {}, batch))(params, batch)
        used = dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))[0]
        counted += products(used)
        values.append(jax.eval_shape(parts.features, params, {}, batch))
    counted += products(jax.make_jaxpr(lambda a, b: parts.contract({}, {}, a, b))(*values).jaxpr)
    total = sum(cost.flops(N1, N2) for cost in parts.costs())
    assert total == pytest.approx(counted - SHARED.get(name, 0), rel=tolerance)


def test_rows_name_what_people_know():
    parts, _, _ = parts_of("conv")
    costs = {cost.variables: cost for cost in parts.costs()}
    assert costs["a",].primitive == "conv_general_dilated"
    assert (costs["a",].rule, costs["c",].rule) == ("convolution", "dense")
    assert costs["b",].sizes == (36, 72, 6)
    assert {cost.form for cost in costs.values()} <= {"explicit", "gram"}
    assert costs["a",].example_flops < 8 * 2 * 64 * 18 * 8 + 2 * 7 * 64 * 18 * 8  # no derivative of the input


@pytest.mark.parametrize("trace_axes", [(1,), ()])
def test_bytes_are_those_of_the_features(trace_axes):
    parts, params, x = parts_of("conv", trace_axes)
    values = jax.eval_shape(parts.features, params, {}, x)
    expected = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(values))
    assert sum(cost.bytes for cost in parts.costs()) == expected
