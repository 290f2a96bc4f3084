"""Biases added to products, as one more row of the product's parameter.

With y = a W + b at every position and D = ∂f/∂y, the Jacobians Σ_t a[t] D[t]ᵀ and Σ_t D[t] together are
Σ_t [a[t], 1] D[t]ᵀ: with ones beside the data the bias costs a row of a matrix product, where alone it costs one more
way through all of D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from exporter.ntk.layerwise import rules, uses
from exporter.ntk.layerwise.analysis import Site, Trace


def of_products(trace: Trace) -> dict[int, int]:
    """By site of a product: the site of the bias that is added to it, one entry for each column of its factors.

    Only where their derivative is in memory, is not summed up, for there is one position, or has no further use, for
    the product's data has no derivative. Elsewhere XLA computes it where it is summed up for the bias, and would
    compute it in each further use of the product's site were that gone.
    """
    found: dict[int, int] = {}
    for addition, product in uses.added_to_products(trace.jaxpr):
        biases = [k for k, site in enumerate(trace.sites) if site.eqn is addition and site.rule is rules.BIAS]
        products = [k for k, site in enumerate(trace.sites) if site.eqn is product and site.rule.columns is not None]
        if len(biases) == len(products):  # as often as the jaxpr that they are in is called
            kept = addition.outvars[0] in trace.kept
            for j, k in zip(products, biases, strict=True):
                site = trace.sites[j]
                once = kept or _has_one_position(site) or not site.differentiated
                if once and _along_columns(trace.sites[k], site):
                    found[j] = k
    return found


def _has_one_position(product: Site) -> bool:
    assert product.rule.columns is not None
    columns = product.rule.columns(product)
    return not product.steps and all(size == 1 for k, size in enumerate(product.perturbed) if k not in columns)


def _along_columns(bias: Site, product: Site) -> bool:
    """Whether a bias has one entry for each column of the product's factors, repeated over their positions."""
    assert product.rule.columns is not None
    columns = sorted(axis for axis in product.rule.columns(product) if product.perturbed[axis] != 1)
    entries = [axis for axis, size in zip(bias.axes, bias.shape, strict=True) if size != 1]
    output, total = product.perturbed, bias.perturbed
    if output == total:
        return entries == columns
    count = math.prod(output[axis] for axis in columns)  # reshaped: the columns must be last before and after
    return columns == _last(output, count) and entries == _last(total, count)


def _last(shape: Sequence[int], count: int) -> list[int] | None:
    """The last axes of `shape`, but for those of size 1, if together they have so many entries."""
    for first in range(len(shape), -1, -1):
        if math.prod(shape[first:]) == count:
            return [axis for axis in range(first, len(shape)) if shape[axis] != 1]
    return None
