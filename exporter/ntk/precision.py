"""Evaluates a JAX function in float64, whatever dtypes it was written for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.compat.jax_names import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, bind, enable_x64


def in_float64(fn: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
    """Returns `fn` as a function of the same arguments that computes in float64 throughout.

    `fn` is traced in its own dtypes; then every float16, bfloat16 and float32 value, constant and dtype parameter of
    its jaxpr, nested ones included, becomes float64. So it stays the same function of its arguments: constants keep the
    value that they have in float32, and only the rounding of intermediate values is gone. Custom derivatives are kept.

    Args:
      fn: a traceable function of pytrees of arrays.
      *specs: for each argument a pytree of arrays or `jax.ShapeDtypeStruct`s in the dtypes that `fn` is written for;
        their shapes do not matter.

    Returns:
      A function of arguments whose floats may have any dtype, with float64 wherever `fn` returns a float; to be called,
      traced or lowered where float64 is enabled (`enable_x64`).
    """
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(specs)]

    def float64_fn(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        own = [jax.ShapeDtypeStruct(jnp.shape(a), dtype) for a, dtype in zip(leaves, dtypes, strict=True)]
        with enable_x64(np.dtype(np.float64) in dtypes):
            closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*jax.tree.unflatten(tree, own))
        values = [
            jnp.asarray(leaf, _widened(traced.dtype)) for leaf, traced in zip(leaves, closed.in_avals, strict=True)
        ]
        outs = _evaluate(closed.jaxpr, closed.consts, values)
        return jax.tree.unflatten(jax.tree.structure(out_shape), outs)

    return float64_fn


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 64


def _widen(value: Any) -> Any:
    return jnp.asarray(value, jnp.float64) if _is_narrow(jnp.result_type(value)) else value


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env: dict[Any, Any] = {}

    def read(v: Any) -> Any:
        return _widen(np.asarray(v.val, jnp.result_type(v.aval))) if isinstance(v, Literal) else env[v]

    env.update(zip(jaxpr.constvars, map(_widen, consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        outs = _evaluate_eqn(eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _evaluate_eqn(eqn: JaxprEqn, values: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name == "custom_jvp_call":
        return _custom_jvp(params)(*values)
    if name in ("pjit", "jit", "closed_call", "custom_vjp_call", "remat", "checkpoint"):
        sub = params.get("jaxpr") or params["call_jaxpr"]
        sub, consts = (sub.jaxpr, sub.consts) if isinstance(sub, ClosedJaxpr) else (sub, ())
        return _evaluate(sub, consts, values)
    return bind(eqn.primitive, {k: _widen_param(v) for k, v in params.items()}, values)


def _widen_param(value: Any) -> Any:
    """A parameter of a primitive with its dtypes and jaxprs (of scan, while, cond, reduce) in float64."""
    if isinstance(value, ClosedJaxpr):
        specs = [jax.ShapeDtypeStruct(v.shape, _widened(v.dtype)) for v in value.in_avals]
        return jax.make_jaxpr(lambda *args: _evaluate(value.jaxpr, value.consts, args))(*specs)
    if isinstance(value, Jaxpr):
        return _widen_param(ClosedJaxpr(value, ())).jaxpr
    if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr) for v in value):
        return tuple(_widen_param(v) for v in value)
    if isinstance(value, np.dtype):
        return _widened(value)
    return value


def _widened(dtype: Any) -> np.dtype:
    return np.dtype(np.float64) if _is_narrow(dtype) else np.dtype(dtype)


def _custom_jvp(params: dict[str, Any]) -> Callable[..., Any]:
    """The custom_jvp_call of `params` (relu, which is 0 at 0, is one) with its own derivative rule, in float64."""
    call = params["call_jaxpr"]

    @jax.custom_jvp
    def fn(*args: Any) -> list[Any]:
        return _evaluate(call.jaxpr, call.consts, args)

    @fn.defjvp
    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        k = params["num_consts"]  # consts of the primal function: its derivative rule takes the other arguments only
        rule, consts, zeros = params["jvp_jaxpr_fun"].call_wrapped(*[False] * (len(primals) - k))
        outs = _evaluate(rule, consts, [*primals[k:], *tangents[k:]])
        n = len(call.jaxpr.outvars)
        nonzero = iter(outs[n:])
        return outs[:n], [jnp.zeros_like(y) if zero else next(nonzero) for y, zero in zip(outs[:n], zeros, strict=True)]

    return fn
