"""The Jacobian at one site, written out or in factors, with the steps of the scans that the site is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from exporter.ntk.equations import aval
from exporter.ntk.layerwise import contract, rules
from exporter.ntk.layerwise.contract import Shape
from exporter.ntk.layerwise.sites import Array, Site


def factor_shape(site: Site) -> Shape | None:
    """The sizes of a site's factors, None if its rule has none."""
    if site.rule.factors is None:
        return None
    data = aval(site.eqn.invars[1 - site.operand])
    a, d = jax.eval_shape(
        lambda a, d: factors(site, a, d),
        jax.ShapeDtypeStruct((*site.steps, *data.shape), data.dtype),
        jax.ShapeDtypeStruct((1, *site.steps, *site.perturbed), site.dtype),
    )
    if site.rule is rules.EMBEDDING:
        return Shape(1, d.shape[1], site.shape[0], d.shape[2])
    return Shape(a.shape[0], a.shape[1], a.shape[2], d.shape[3])


def folded(site: Site, data: Array, products: Array) -> tuple[Array, Array] | None:
    """A site's data and the products of its positions, folded by its rule if that has a better way than factors."""
    return None if site.rule.fold is None else site.rule.fold(site, data, products)


def whole(site: Site) -> bool:
    """Whether the Jacobian is cheaper written out by its rule than made of its factors."""
    return site.rule.whole is not None and site.rule.whole(site)


def explicit(site: Site, data: Any, d: Array) -> Array:
    """G (R, *parameter) of a site, summed over the steps of the scans that it is in."""
    if site.rule.assemble is not None and not whole(site):
        g = contract.join(*factors(site, data, d))
        return site.rule.assemble(site, jnp.transpose(g, (2, 0, 1, 3)))
    fn = site.rule.explicit
    assert fn is not None
    for _ in site.steps:
        fn = _sum_steps(fn)
    return fn(site, data, d)


def _sum_steps(fn: Callable[..., Array]) -> Callable[..., Array]:
    def summed(site: Site, data: Any, d: Array) -> Array:
        return jnp.sum(jax.vmap(lambda a, d: fn(site, a, d), in_axes=(None if data is None else 0, 1))(data, d), 0)

    return summed


def factors(site: Site, data: Any, d: Array) -> tuple[Array, Array]:
    """The factors of a site, with the steps of the scans that it is in among the positions."""
    assert site.rule.factors is not None
    fn = site.rule.factors
    for _ in site.steps:
        fn = _join_steps(fn, index=site.rule is rules.EMBEDDING)
    return fn(site, data, d)


def _join_steps(fn: Callable[..., tuple[Array, Array]], *, index: bool) -> Callable[..., tuple[Array, Array]]:
    def joined(site: Site, data: Any, d: Array) -> tuple[Array, Array]:
        a, d = jax.vmap(lambda a, d: fn(site, a, d), in_axes=(0, 1), out_axes=(0 if index else -3, -3))(data, d)
        a = a.reshape(-1) if index else a.reshape(*a.shape[:-3], -1, a.shape[-1])
        return a, d.reshape(*d.shape[:-3], -1, d.shape[-1])

    return joined
