"""From features of examples to kernels, each group of sites in its cheapest form.

Outputs of one example are numbered r = (d, c, k): d those of the diagonal axes, c of the traced, k of the kept ones, of
which there are D, C and K. For two examples n and m with Jacobians G of shape (D, C, K, P)

    kernel[n, m, d, k, l] = Σ_c <G[n, d, c, k], G[m, d, c, l]>

is a product of matrices over (c, P), the explicit form. Where G[b] = Σ_t a[b, t] D[b, t]ᵀ it is also the Gram form

    Σ_{b, t, u} <a[n, b, t], a[m, b, u]> Σ_c <D[n, d, c, k, b, t], D[m, d, c, l, b, u]>

which never makes a G, and costs T² where that costs I J.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from exporter.ntk.layerwise.outputs import OutputAxes

Array = Any

BYTE_IN_FLOPS = 8  # what moving a byte costs, in floating point operations; about so on CPUs and GPUs alike


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a site's factors: B batch entries, T positions, I of the data, J of the derivative."""

    batch: int
    positions: int
    data: int
    derivative: int

    def gram_cost(self, n1: int, n2: int, outputs: OutputAxes, *, index: bool = False) -> float:
        """Cost of the Gram form in floating point operations; `index` for an embedding, whose a are not multiplied."""
        pairs = float(n1) * n2 * self.batch * self.positions**2
        kept = outputs.diagonal * outputs.kept**2
        flops = 2 * pairs * ((1 if index else self.data) + outputs.traced * kept * self.derivative + kept)
        return flops + BYTE_IN_FLOPS * 4 * pairs * (1 + kept)

    def explicit_cost(self, n1: int, n2: int, outputs: OutputAxes) -> float:
        """Cost of the explicit form."""
        size = self.batch * self.data * self.derivative
        build = 2.0 * (n1 + n2) * outputs.count * self.positions * size
        product = 2.0 * n1 * n2 * outputs.count * outputs.kept * size
        return build + product + BYTE_IN_FLOPS * 4 * (n1 + n2) * outputs.count * size


def explicit(g1: Array, g2: Array) -> Array:
    """(n1, D, C, K1, P), (n2, D, C, K2, P) to (n1, n2, D, K1, K2)."""
    return jnp.einsum("ndckp,mdclp->nmdkl", g1, g2)


def joined(g1: Array, g2: Array) -> Array:
    """(n, B, I, D, C, K, J) on both sides to (n1, n2, D, K1, K2): the explicit form as `join` leaves the Jacobians."""
    return jnp.einsum("nbidckj,mbidclj->nmdkl", g1, g2)


def join(a: Array, d: Array) -> Array:
    """G (B, I, R, J) of an example from its a (B, T, I) and D (R, B, T, J): one matrix product for each b."""
    r, b, t, j = d.shape
    return jnp.einsum("bti,btq->biq", a, jnp.transpose(d, (1, 2, 0, 3)).reshape(b, t, r * j)).reshape(b, -1, r, j)


def gram(a1: Array, d1: Array, a2: Array, d2: Array) -> Array:
    """(n, B, T, I) and (n, D, C, K, B, T, J) on both sides to (n1, n2, D, K1, K2)."""
    return _sum_positions(jnp.einsum("nbti,mbui->nmbtu", a1, a2), d1, d2)


def index_gram(index1: Array, d1: Array, index2: Array, d2: Array) -> Array:
    """Indices (n, T), below 0 for none, and (n, D, C, K, T, J) on both sides to (n1, n2, D, K1, K2)."""
    same = (index1[:, None, :, None] == index2[None, :, None, :]) & (index1 >= 0)[:, None, :, None]
    return _sum_positions(same[:, :, None].astype(d1.dtype), d1[..., None, :, :], d2[..., None, :, :])


FORMS: dict[str, Callable[..., Array]] = {"explicit": explicit, "joined": joined, "gram": gram, "index": index_gram}


def _sum_positions(aa: Array, d1: Array, d2: Array) -> Array:
    dd = jnp.einsum("ndckbtj,mdclbuj->nmdklbtu", d1, d2)
    return jnp.einsum("nmbtu,nmdklbtu->nmdkl", aa, dd)
