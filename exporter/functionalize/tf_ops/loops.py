"""While loops: a scan if the number of iterations is known at trace time, so that they have reverse-mode derivatives.

The number of iterations is known if the part of the loop that its condition depends upon (usually a counter) starts
from known values. That part is sliced from the body, run on its own, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exporter.compat.jax_names import ClosedJaxpr, Tracer, dce_jaxpr_consts, jaxpr_as_fun
from exporter.functionalize.tf_ops.graph import Library, is_known
from exporter.functionalize.tf_ops.registry import OpFunction, converts
from exporter.functionalize.tf_ops.tensor_lists import UnwrittenList


@converts("While", "StatelessWhile")
def _while(node: Any, library: Library) -> OpFunction:
    cond, body = library[node.attr["cond"].func.name], library[node.attr["body"].func.name]
    invariant = body.unchanged_arguments

    def loop(*args: Any) -> tuple[Any, ...]:
        varying = [i for i in range(len(args)) if i not in invariant]

        def step(*carry: Any) -> list[Any]:
            results = body(*_replace(args, varying, carry))
            return [results[i] for i in varying]

        def condition(*carry: Any) -> jax.Array:
            return jnp.asarray(cond(*_replace(args, varying, carry))[0], bool)

        carry = _initial_carry([args[i] for i in varying], step)
        results, is_static = _run(condition, step, [args[i] for i in varying], carry)
        if not is_static:
            library.dynamic_loops.add(node.name)
        return _replace(args, varying, results)

    return loop


def _replace(values: Sequence[Any], indices: Sequence[int], replacements: Sequence[Any]) -> tuple[Any, ...]:
    replaced = list(values)
    for i, replacement in zip(indices, replacements, strict=True):
        replaced[i] = replacement
    return tuple(replaced)


def _initial_carry(initial: Sequence[Any], step: Callable[..., list[Any]]) -> list[jax.Array]:
    """The initial values as arrays of the types that the loop settles on.

    Lists that the loop fills get their element shape, and a float type that the body widens (because the variables are
    float64, say) becomes the wider one.
    """
    carry: list[Any] = [value if isinstance(value, UnwrittenList) else jnp.asarray(value) for value in initial]
    while True:
        settled = [_settle(value, after) for value, after in zip(carry, _types_after(step, carry), strict=True)]
        if all(a is b for a, b in zip(settled, carry, strict=True)):
            return settled
        carry = settled


def _types_after(step: Callable[..., list[Any]], carry: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """The types of the loop variables after a step from `carry`."""
    arrays = [i for i, value in enumerate(carry) if not isinstance(value, UnwrittenList)]
    specs = [jax.ShapeDtypeStruct(carry[i].shape, carry[i].dtype) for i in arrays]
    return jax.eval_shape(lambda *values: step(*_replace(carry, arrays, values)), *specs)


def _settle(value: Any, after: jax.ShapeDtypeStruct) -> jax.Array:
    """The value as the type that it has after a step, if need be."""
    if isinstance(value, UnwrittenList):
        return value.zeros(after.shape[1:], after.dtype)
    if value.shape != after.shape:
        raise NotImplementedError(f"a loop variable changes its shape from {value.shape} to {after.shape}")
    dtype = jnp.promote_types(value.dtype, after.dtype)
    return value if dtype == value.dtype else value.astype(dtype)


def _run(
    condition: Callable[..., jax.Array], step: Callable[..., list[Any]], initial: Sequence[Any], carry: list[jax.Array]
) -> tuple[Sequence[Any], bool]:
    """The carry after the loop, and whether the number of iterations was known; `initial` says which values are."""
    dtypes = [value.dtype for value in carry]

    def typed_step(*values: Any) -> list[jax.Array]:
        return [jax.lax.convert_element_type(v, dtype) for v, dtype in zip(step(*values), dtypes, strict=True)]

    specs = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in carry]
    cond_jaxpr, step_jaxpr = jax.make_jaxpr(condition)(*specs), jax.make_jaxpr(typed_step)(*specs)
    run_step = jaxpr_as_fun(step_jaxpr)
    trips = _count_trips(cond_jaxpr, step_jaxpr, [np.asarray(v) if is_known(v) else None for v in initial])
    if trips is not None:
        return jax.lax.scan(lambda values, _: (run_step(*values), None), carry, None, length=trips)[0], True
    run_condition = jaxpr_as_fun(cond_jaxpr)
    return jax.lax.while_loop(lambda values: run_condition(*values)[0], lambda values: run_step(*values), carry), False


def _count_trips(cond_jaxpr: ClosedJaxpr, step_jaxpr: ClosedJaxpr, initial: Sequence[np.ndarray | None]) -> int | None:
    """The number of iterations; None if it depends on a value that is not known (None in `initial`, or a tracer)."""
    needed = _used(cond_jaxpr, [True], [False] * len(initial))[1]
    while True:
        more = _used(step_jaxpr, needed, needed)[1]
        if more == needed:
            break
        needed = more
    (cond, *_), (step, *_) = _used(cond_jaxpr, [True], needed), _used(step_jaxpr, needed, needed)
    known = [value for value, is_needed in zip(initial, needed, strict=True) if is_needed]
    if cond is None or step is None or any(value is None for value in known):
        return None

    def count(values: Sequence[Any]) -> Any:
        counted = jax.lax.while_loop(
            lambda state: cond(*state[1])[0], lambda state: (state[0] + 1, step(*state[1])), (0, values)
        )
        return counted[0]

    with jax.ensure_compile_time_eval():
        return int(jax.jit(count)([jnp.asarray(value) for value in known]))


def _used(
    closed: ClosedJaxpr, outputs: Sequence[bool], inputs: Sequence[bool]
) -> tuple[Callable[..., list[Any]] | None, list[bool]]:
    """The part of a jaxpr that computes some of its outputs, and which inputs it uses (at least those in `inputs`).

    The part is None if it uses a constant that is itself being traced.
    """
    keep = [False] * len(closed.consts) + list(inputs)
    sliced, used_consts, used_inputs = dce_jaxpr_consts(closed.jaxpr, list(outputs), instantiate=keep)
    consts = [const for const, is_used in zip(closed.consts, used_consts, strict=True) if is_used]
    if any(isinstance(const, Tracer) for const in consts):
        return None, list(used_inputs)
    return jaxpr_as_fun(ClosedJaxpr(sliced, consts)), list(used_inputs)
