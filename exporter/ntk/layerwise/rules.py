"""What the Jacobian of each kind of site is made of: one rule for each kind.

With D = ∂f/∂y, y the output of the site's equation, of shape (R, *y) for R outputs f of one example, and the equation's
data input, the Jacobian with respect to the site's parameter is

    dense, einsum      G[b] = Σ_t a[b, t] D[b, t]ᵀ, with a the data as (B, T, I) and D as (R, B, T, J), for B batch
                       entries and T positions
    convolution        the same: a[b, t] the patch of group b under output position t; see also `depthwise`
    embedding          the same: a one-hot, which is never written out: only the index is kept
    add, sub, mul      G = ± D (times the data), summed over the axes along which the parameter is repeated
    anything else      the derivative with respect to the parameter itself, for each example

which Novak et al. 2022 (arXiv 2206.08720) call structured derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from exporter.compat.jax_names import JaxprEqn
from exporter.ntk.equations import aval, bind
from exporter.ntk.layerwise import patches
from exporter.ntk.layerwise.sites import Array, Rule, Site
from exporter.ntk.layerwise.window import Window


def _derivative(site: Site, data: Array, d: Array) -> Array:
    """G (R, *parameter) by the derivative of the one equation."""

    def fn(parameter: Array) -> Array:
        return bind(site.eqn, (parameter, data) if site.operand == 0 else (data, parameter))[0]

    _, vjp = jax.vjp(fn, jnp.zeros(site.shape, aval(site.eqn.invars[site.operand]).dtype))
    return jax.vmap(lambda cotangent: vjp(cotangent)[0])(d)


def find(eqn: JaxprEqn, operands: Sequence[int]) -> Rule:
    """The rule for an equation with parameters at these of its inputs."""
    if len(operands) == 1 and len(eqn.outvars) == 1:
        (operand,) = operands
        name = eqn.primitive.name
        if name == "dot_general":
            return DENSE
        if name == "conv_general_dilated" and operand == 1 and eqn.params["batch_group_count"] == 1:
            return CONVOLUTION
        if name in ("add", "add_any", "sub"):
            return BIAS
        if name == "mul":
            return SCALE
        if name == "gather" and operand == 0 and _is_embedding(eqn):
            return EMBEDDING
    return GENERIC


# --- anything else


GENERIC = Rule("generic", explicit=lambda site, data, d: d, needs_data=False)

# --- add, sub, mul


def _sum_repeated(site: Site, g: Array, *, product: bool) -> Array:
    """(R, *output) summed to (R, *parameter); `product` if XLA sees that g is one."""
    sizes = dict(zip(site.axes, site.shape, strict=True))
    repeated = [k + 1 for k, size in enumerate(g.shape[1:]) if sizes.get(k, 1) == 1 and size != 1]
    if product and len(repeated) > 1:
        # XLA:CPU has fast sums, but not for products, which it adds up along several axes in scalar loops: a quarter of
        # a ResNet-50's time. This leaves all values as they are, and is no product.
        g = jnp.where(g != g, jnp.nan, g)
    return jnp.sum(g, repeated).reshape(g.shape[0], *site.shape)


BIAS = Rule(
    "bias",
    explicit=lambda site, data, d: _sum_repeated(
        site, -d if site.eqn.primitive.name == "sub" and site.operand == 1 else d, product=site.scaled
    ),
    needs_data=False,
    elementwise=True,
)

SCALE = Rule(
    "scale",
    explicit=lambda site, data, d: _sum_repeated(site, d * data, product=True),
    elementwise=True,
)

# --- dot_general


def _dense_dims(site: Site) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Batch, contracted and free axes of data and parameter; and the output's axes as batch, data, parameter."""
    contracted, batch = site.eqn.params["dimension_numbers"]
    sides = []
    for k in (1 - site.operand, site.operand):
        used = [*batch[k], *contracted[k]]
        free = [axis for axis in range(aval(site.eqn.invars[k]).ndim) if axis not in used]
        sides.append([list(batch[k]), list(contracted[k]), free])
    b, data, param = len(batch[0]), len(sides[0][2]), len(sides[1][2])
    if site.operand == 1:
        order = list(range(b + data + param))
    else:
        order = [*range(b), *range(b + param, b + param + data), *range(b, b + param)]
    return sides[0], sides[1], order


def _dense_factors(site: Site, a: Array, d: Array) -> tuple[Array, Array]:
    (batch, contracted, free), _, order = _dense_dims(site)
    sizes = [math.prod(a.shape[axis] for axis in axes) for axes in (batch, free, contracted)]
    a = jnp.transpose(a, [*batch, *free, *contracted]).reshape(sizes)
    d = jnp.transpose(d, [0, *(axis + 1 for axis in order)]).reshape(d.shape[0], sizes[0], sizes[1], -1)
    return a, d


def _dense_assemble(site: Site, g: Array) -> Array:
    _, (batch, contracted, free), _ = _dense_dims(site)
    axes = [*batch, *contracted, *free]
    g = g.reshape(g.shape[0], *(site.shape[axis] for axis in axes))
    return jnp.transpose(g, [0, *(1 + axes.index(axis) for axis in range(len(axes)))])


def _dense_columns(site: Site) -> list[int]:
    (batch, _, free), _, order = _dense_dims(site)
    return [*order[: len(batch)], *order[len(batch) + len(free) :]]


DENSE = Rule("dense", factors=_dense_factors, assemble=_dense_assemble, columns=_dense_columns)

# --- conv_general_dilated


# Patches of an example of more numbers than this, 4 MiB, wait for the derivative that they are multiplied with. XLA:CPU
# makes what it can as soon as it can: those of all layers, 400 MB of a ConvNeXt, before it has the first derivative.
MOST_PATCHES = 1 << 20


def _not_before(d: Array, data: Array) -> Array:
    """`data`, of which XLA can make nothing before d, as it cannot know that a count of bits is not negative.

    (It would take an `optimization_barrier` away before it decides what is computed when.)
    """
    bits = lax.bitcast_convert_type(d[(0,) * d.ndim], f"int{8 * d.dtype.itemsize}")
    return data + jnp.minimum(lax.population_count(bits), 0).astype(data.dtype)


def _conv_inputs(site: Site, data: Array, d: Array) -> tuple[Array, Array]:
    """The data, if its patches may be made, and D (R, batch, *positions, groups, channels of a group)."""
    dn, groups = site.eqn.params["dimension_numbers"], site.eqn.params["feature_group_count"]
    window = Window.of(site.eqn)
    taps = math.prod(window.kernel)
    if taps > 1 and taps * math.prod(window.outputs) * data.shape[dn.lhs_spec[1]] > MOST_PATCHES:
        data = _not_before(d, data)
    d = jnp.transpose(d, [0, *(1 + axis for axis in (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1]))])
    return data, d.reshape(*d.shape[:-1], groups, -1)


def _conv_factors(site: Site, data: Array, d: Array) -> tuple[Array, Array]:
    data, d = _conv_inputs(site, data, d)
    a = site.lowering.patches(site.eqn, data)
    d = d.reshape(d.shape[0], a.shape[1], *d.shape[-2:])
    return a, jnp.transpose(d, (0, 2, 1, 3))


def _conv_assemble(site: Site, g: Array) -> Array:
    rhs = site.eqn.params["dimension_numbers"].rhs_spec
    kernel = [site.shape[axis] for axis in rhs[2:]]
    r, groups, _, features = g.shape
    g = g.reshape(r, groups, *kernel, -1, features)
    g = jnp.moveaxis(g, 1, -2).reshape(r, *kernel, g.shape[-2], groups * features)
    return _conv_ordered(site, g)


def _conv_ordered(site: Site, g: Array) -> Array:
    """G (R, *kernel, channels of a group, features) with the parameter's order of axes."""
    rhs = site.eqn.params["dimension_numbers"].rhs_spec
    axes = [*rhs[2:], rhs[1], rhs[0]]
    return jnp.transpose(g, [0, *(1 + axes.index(axis) for axis in range(len(axes)))])


def _is_depthwise(site: Site) -> bool:
    """Whether each channel is a group, with more than one tap."""
    rhs, groups = site.eqn.params["dimension_numbers"].rhs_spec, site.eqn.params["feature_group_count"]
    return groups > 1 and site.shape[rhs[1]] == 1 and math.prod(site.shape[axis] for axis in rhs[2:]) > 1


def _depthwise_explicit(site: Site, data: Array, d: Array) -> Array:
    data, d = _conv_inputs(site, data, d)
    lhs = site.eqn.params["dimension_numbers"].lhs_spec
    a = jnp.transpose(data, (lhs[0], *lhs[2:], lhs[1]))
    g = site.lowering.depthwise(Window.of(site.eqn), a, d)
    return _conv_ordered(site, g.reshape(*g.shape[:-2], 1, -1))


def _conv_columns(site: Site) -> list[int]:
    return [site.eqn.params["dimension_numbers"].out_spec[1]]


def _conv_fold(site: Site, data: Array, products: Array) -> tuple[Array, Array] | None:
    return patches.fold(site.eqn, data, products) if patches.folds(site.eqn) else None


CONVOLUTION = Rule(
    "convolution",
    explicit=_depthwise_explicit,
    factors=_conv_factors,
    fold=_conv_fold,
    assemble=_conv_assemble,
    whole=_is_depthwise,
    columns=_conv_columns,
)

# --- gather of an embedding


def _is_embedding(eqn: JaxprEqn) -> bool:
    """Whether whole rows of a table are gathered, one for each index."""
    dn, table = eqn.params["dimension_numbers"], aval(eqn.invars[0])
    rows = dn.collapsed_slice_dims
    full = tuple(1 if axis in rows else size for axis, size in enumerate(table.shape))
    whole_rows = len(rows) == 1 and dn.start_index_map == rows and tuple(eqn.params["slice_sizes"]) == full
    return whole_rows and not dn.operand_batching_dims


def _embedding_factors(site: Site, data: Array, d: Array) -> tuple[Array, Array]:
    eqn, dn = site.eqn, site.eqn.params["dimension_numbers"]
    rows = aval(eqn.invars[0]).shape[dn.collapsed_slice_dims[0]]
    index = data.reshape(-1)
    if eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        index = jnp.clip(index, 0, rows - 1)
    else:  # an index out of range gets nothing of the table, and so adds nothing to its Jacobian
        index = jnp.where((index >= 0) & (index < rows), index, -1)
    positions = [axis for axis in range(d.ndim - 1) if axis not in dn.offset_dims]
    d = jnp.transpose(d, [0, *(1 + axis for axis in (*positions, *dn.offset_dims))])
    return index, d.reshape(d.shape[0], index.shape[0], -1)


EMBEDDING = Rule("embedding", explicit=_derivative, factors=_embedding_factors)
