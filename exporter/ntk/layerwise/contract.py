"""From features of examples to kernels, each group of sites in its cheapest form.

Outputs of one example are numbered r = (d, c, k): d those of the diagonal axes, c of the traced, k of the kept ones, of
which there are D, C and K. For two examples n and m with Jacobians G of shape (D, C, K, P)

    kernel[n, m, d, k, l] = Σ_c <G[n, d, c, k], G[m, d, c, l]>

is a product of matrices over (c, P), the explicit form. Where G[b] = Σ_t a[b, t] D[b, t]ᵀ it is also the Gram form

    Σ_{b, t, u} <a[n, b, t], a[m, b, u]> Σ_c <D[n, d, c, k, b, t], D[m, d, c, l, b, u]>

which never makes a G, and costs T² where that costs I J. Where D is the same for all examples, its products

    M[d, k, l, b, t, u] = Σ_c <D[d, c, k, b, t], D[d, c, l, b, u]>

are made once, not for each pair, and the shared form is Σ_{b, t} <a[n, b, t], Σ_u M[d, k, l, b, t, u] a[m, b, u]>.

Features are laid out such that with D = K = B = 1, as it mostly is, each product is one of plain matrices, the sum over
their last axes: XLA:CPU transposes whatever is arranged otherwise, at several times the cost of the product.

Features may be of half precision, where a model computes in it. What is added up here is at least float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from exporter.ntk.layerwise.outputs import OutputAxes
from exporter.ntk.layerwise.platforms import on_platform

Array = Any

# XLA:CPU adds up the products of fewer rows one after the other, in float32: off by 6e-5 for 260,000 of them, where
# sums of parts, or its products of more rows, are within 5e-7.
FEW = 4
LONG = 4096
# On CPUs a loop whose sums stay in the cache multiplies rows of more numbers, at the rate of memory, where products of
# parts begin for each part. Of fewer numbers it takes longer to compile than it saves.
LOOPED = 1 << 18
PARTIAL = 1 << 14
# Products of both sides' rows with each other, of which a quarter is wanted, are quicker up to so many rows than copies
# of each side's, which XLA has to compile as well: a sixth of the compilation of a MobileNet.
MOST_ROWS = 32
BYTE_IN_FLOPS = 8  # what moving a byte costs, in floating point operations; about so on CPUs and GPUs alike


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a site's factors: B batch entries, T positions, I of the data, J of the derivative."""

    batch: int
    positions: int
    data: int
    derivative: int

    def pass_flops(self) -> float:
        """Floating point operations of the site's equation for one example, forwards or backwards."""
        return 2.0 * self.batch * self.positions * self.data * self.derivative

    def build_flops(self, outputs: OutputAxes) -> float:
        """Those that make the G of one example of its factors."""
        return outputs.count * self.pass_flops()

    def explicit_flops(self, outputs: OutputAxes) -> float:
        """Those of the explicit form for one pair of examples."""
        return 2.0 * outputs.count * outputs.kept * self.batch * self.data * self.derivative

    def gram_flops(self, outputs: OutputAxes, *, index: bool = False) -> float:
        """Those of the Gram form for one pair; `index` for an embedding, whose a are not multiplied."""
        kept = outputs.diagonal * outputs.kept**2
        each = (1 if index else self.data) + outputs.traced * kept * self.derivative + kept
        return 2.0 * self.batch * self.positions**2 * each

    def gram_cost(self, n1: int, n2: int, outputs: OutputAxes, *, index: bool = False) -> float:
        """Cost of the Gram form of so many examples, in floating point operations.

        Moved are the products of a, and those of D, twice: before and after they are multiplied with those of a.
        """
        moved = 4.0 * self.batch * self.positions**2 * (1 + 4 * outputs.diagonal * outputs.kept**2)
        return n1 * n2 * (self.gram_flops(outputs, index=index) + BYTE_IN_FLOPS * moved)

    def shared_flops(self, outputs: OutputAxes) -> float:
        """Floating point operations of the shared form for one example, which apply the products of D to its data."""
        return self.positions * self.shared_pair_flops(outputs)

    def shared_pair_flops(self, outputs: OutputAxes) -> float:
        """Those for one pair."""
        return 2.0 * outputs.diagonal * outputs.kept**2 * self.batch * self.positions * self.data

    def shared_numbers(self, outputs: OutputAxes) -> int:
        """Numbers that are kept of one example: its data, before and after."""
        return (1 + outputs.diagonal * outputs.kept**2) * self.batch * self.positions * self.data

    def shared_cost(self, n1: int, n2: int, outputs: OutputAxes, folded: Shape) -> float:
        """Cost of the shared form, whose products of D, of this shape, are applied to data of the `folded` shape."""
        kept = outputs.diagonal * outputs.kept**2
        products = 2.0 * self.batch * self.positions**2 * outputs.count * outputs.kept * self.derivative
        moved = 4.0 * self.batch * kept * (self.positions**2 + folded.positions**2)
        of_example = folded.shared_flops(outputs) + BYTE_IN_FLOPS * 4.0 * folded.shared_numbers(outputs)
        of_side = products + BYTE_IN_FLOPS * moved
        return 2 * of_side + (n1 + n2) * of_example + n1 * n2 * folded.shared_pair_flops(outputs)

    def explicit_cost(self, n1: int, n2: int, outputs: OutputAxes) -> float:
        """Cost of the explicit form."""
        moved = 4.0 * outputs.count * self.batch * self.data * self.derivative
        build = self.build_flops(outputs) + BYTE_IN_FLOPS * moved
        return (n1 + n2) * build + n1 * n2 * self.explicit_flops(outputs)


def join(a: Array, d: Array) -> Array:
    """G (B, I, R, J) of an example from its a (B, T, I) and D (R, B, T, J): one matrix product for each b."""
    r, b, _, j = d.shape
    return jnp.einsum("bti,btq->biq", a, _columns(d)).reshape(b, -1, r, j)


def flat_joined(a: Array, d: Array, outputs: tuple[int, int, int]) -> Array:
    """G (D, K, M) of an example from its a (B, T, I) and D (R, B, T, J), M being its entries of all traced outputs.

    The product is made in the order of axes that needs no copy: of one batch entry, where either C or K is 1.
    """
    r, b, _, j = d.shape
    if outputs[1] == r:  # all of them traced
        return join(a, d).reshape(1, 1, -1)
    g = jnp.einsum("btq,bti->bqi", _columns(d), a).reshape(b, *outputs, j, -1)
    return jnp.transpose(g, (1, 3, 0, 2, 4, 5)).reshape(outputs[0], outputs[2], -1)


def _columns(d: Array) -> Array:
    """D (R, B, T, J) as (B, T, R J)."""
    r, b, t, j = d.shape
    return jnp.transpose(d, (1, 2, 0, 3)).reshape(b, t, r * j)


def flat(g: Array, outputs: tuple[int, int, int]) -> Array:
    """G (D, K, C P) of an example from its G (R, ...)."""
    g = jnp.swapaxes(g.reshape(*outputs, -1), 1, 2)
    return g.reshape(*g.shape[:2], -1)


def by_position(d: Array, outputs: tuple[int, int, int]) -> Array:
    """D (D, K, ..., T, C J) of an example from its D (R, ..., T, J)."""
    d = d.reshape(*outputs, *d.shape[1:])
    d = jnp.moveaxis(d, 1, -2)
    return d.reshape(*d.shape[:-2], -1)


def shared_products(d: Array, outputs: tuple[int, int, int]) -> Array:
    """M (D, K, K, B, T, T) of the D (R, B, T, J) that all examples have."""
    d = jnp.moveaxis(by_position(_summable(d), outputs), 1, 0)  # (K, D, B, T, C J)
    return jnp.einsum("kdbtm,ldbum->dklbtu", d, d)


def applied(products: Array, a: Array) -> Array:
    """M (D, K, K, B, T, T) times a (B, T, I) of an example: (D, K, K, B T I)."""
    return jnp.einsum("dklbtu,bui->dklbti", products, a).reshape(*products.shape[:3], -1)


def explicit(g1: Array, g2: Array) -> Array:
    """G (n, D, K, M) on both sides, M over traced outputs and parameters, to (n1, n2, D, K1, K2)."""
    products = _products(*(jnp.moveaxis(g, 1, 0) for g in (g1, g2)))  # (D, n1, K1, n2, K2)
    return jnp.transpose(products, (1, 3, 0, 2, 4))


def gram(a1: Array, d1: Array, a2: Array, d2: Array) -> Array:
    """a (n, B, T, I) and D (n, D, K, B, T, C J) on both sides to (n1, n2, D, K1, K2)."""
    aa = _products(*(jnp.moveaxis(a, 1, 0)[:, :, None] for a in (a1, a2)))
    return _sum_positions(aa, d1, d2)


def index_gram(index1: Array, d1: Array, index2: Array, d2: Array) -> Array:
    """Indices (n, T), below 0 for none, and D (n, D, K, T, C J) on both sides to (n1, n2, D, K1, K2)."""
    same = (index1[:, :, None, None] == index2) & (index1 >= 0)[:, :, None, None]
    return _sum_positions(same[None, :, None, :, :, None].astype(d1.dtype), d1[:, :, :, None], d2[:, :, :, None])


def shared(a1: Array, _1: Array, a2: Array, applied2: Array) -> Array:
    """a (n, M) and products applied to it (n, D, K, K, M) on both sides to (n1, n2, D, K1, K2)."""
    (products,) = _products(a1[None], applied2.reshape(1, -1, a1.shape[-1]))
    return products.reshape(-1, *applied2.shape[:-1])


FORMS: dict[str, Callable[..., Array]] = {
    "explicit": explicit,
    "gram": gram,
    "index": index_gram,
    "shared": shared,
}


def contract(features1: dict[str, list[Any]], features2: dict[str, list[Any]]) -> Array:
    """Lists of the arguments of each form, for both sides, to (n1, n2, D, K1, K2): the sum of all contractions."""
    total: Array = 0.0
    for form, fn in FORMS.items():
        for part1, part2 in zip(features1[form], features2[form], strict=True):
            total = total + fn(*map(_summable, part1), *map(_summable, part2))
    return total


def _summable(a: Array) -> Array:
    """Half precision as float32, in which products of such numbers are exact and their sums nearly so."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32)) if jnp.issubdtype(a.dtype, jnp.floating) else a


def contract_sides(features: dict[str, list[Any]], n1: int) -> Array:
    """The same (n1, n2, D, K1, K2) of the first n1 examples with the others, from features of all of them."""
    few, many = (
        {form: [part for part in parts if _has_few_rows(form, part) is wanted] for form, parts in features.items()}
        for wanted in (True, False)
    )
    total = contract(*sides(many, n1))
    return total + contract(few, few)[:n1, n1:] if any(few.values()) else total


def sides(arrays: Any, n1: int) -> tuple[Any, Any]:
    """A pytree of arrays of all examples, as one of the first n1 and one of the others."""
    return jax.tree.map(lambda a: a[:n1], arrays), jax.tree.map(lambda a: a[n1:], arrays)


def _has_few_rows(form: str, part: tuple[Array, ...]) -> bool:
    """Whether few examples, kept outputs and positions together are the rows of what `part` is contracted by."""
    d = part[-1]
    rows = d.shape[0] * d.shape[2] * (1 if form == "explicit" else d.shape[-2])
    return isinstance(rows, int) and rows <= MOST_ROWS


def _sum_positions(aa: Array, d1: Array, d2: Array) -> Array:
    """aa (B, n1, 1, T, n2, 1, T) times the products of the D, summed over positions, to (n1, n2, D, K1, K2)."""

    def of_diagonal(d1: Array, d2: Array) -> Array:
        dd = _products(*(jnp.moveaxis(d, 2, 0) for d in (d1, d2)))  # (B, n1, K1, T, n2, K2, T)
        return jnp.sum(aa * dd, (0, 3, 6))

    alone = d1.shape[1] == 1  # then not as a batch of one
    sums = of_diagonal(d1[:, 0], d2[:, 0])[None] if alone else jax.vmap(of_diagonal, 1)(d1, d2)
    return jnp.transpose(sums, (1, 3, 0, 2, 4))


def _products(x: Array, y: Array) -> Array:
    """(B, ..., M) and (B, ..., M) to (B, ..., ...), the products of their rows."""
    b, *left, m = x.shape
    right = y.shape[1:-1]
    x, y = x.reshape(b, -1, m), y.reshape(b, -1, m)
    if m > LONG and any(isinstance(rows, int) and rows < FEW for rows in (x.shape[1], y.shape[1])):
        products = _sum_of_parts(x, y)
    elif b == 1:
        products = lax.dot_general(x[0], y[0], (((1,), (1,)), ((), ())))
    else:
        products = lax.dot_general(x, y, (((2,), (2,)), ((0,), (0,))))
    return products.reshape(b, *left, *right)


def _sum_of_parts(x: Array, y: Array) -> Array:
    """(B, n, M) and (B, m, M) to (B, n, m), by sums of LONG products each, or somewhat fewer that divide M."""
    if x.shape[-1] >= LOOPED and x.shape[:2] == y.shape[:2] == (1, 1):
        return on_platform(_by_loop, _by_products)(x, y)
    return _by_products(x, y)


def _by_products(x: Array, y: Array) -> Array:
    """The same, on any platform."""
    b, _, m = x.shape
    size = next((size for size in range(LONG, LONG // 4, -1) if m % size == 0), LONG)  # what is padded is copied
    parts = -(-m // size)
    x, y = (jnp.pad(v, ((0, 0), (0, 0), (0, parts * size - m))).reshape(b, -1, parts, size) for v in (x, y))
    return jnp.sum(jnp.einsum("bnpk,bmpk->pbnm", x, y), 0)


def _by_loop(x: Array, y: Array) -> Array:
    """The same of one row each, by PARTIAL sums that a loop adds to."""
    whole = x.shape[-1] // PARTIAL

    def add(k: Array, total: Array) -> Array:
        some = (lax.dynamic_slice_in_dim(v, k * PARTIAL, PARTIAL, 2) for v in (x, y))
        return total + math.prod(some)

    total = lax.fori_loop(0, whole, add, jnp.zeros((1, 1, PARTIAL), x.dtype))
    rest = x[..., whole * PARTIAL :] * y[..., whole * PARTIAL :]
    return (jnp.sum(total) + jnp.sum(rest)).reshape(1, 1, 1)
