"""Computations that are other ones on CPUs, in programs that are traced once for all platforms."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from exporter.compat.jax_names import Primitive, batching, mlir, shaped_abstractify

Fn = Callable[..., Any]


def on_platform(cpu: Fn, default: Fn) -> Fn:
    """The function of arrays, to one array, that is `cpu` on CPUs and `default`, which has the same results, elsewhere.

    Which of them it is, is decided when it is lowered; until then it is one operation to JAX, where
    `lax.platform_dependent` traces, batches and keeps both. Neither may be differentiated. Equal functions should be
    equal to Python too, so that what JAX has traced of one is found for the other.
    """
    return functools.partial(_platform_p.bind, cpu=cpu, default=default)


@dataclasses.dataclass(frozen=True)
class _Vmapped:
    fn: Fn
    axes: tuple[int | None, ...]

    def __call__(self, *args: Any) -> Any:
        return jax.vmap(self.fn, self.axes)(*args)


def _batched(args: Sequence[Any], axes: Sequence[Any], *, cpu: Fn, default: Fn) -> tuple[Any, int]:
    return on_platform(*(_Vmapped(fn, tuple(axes)) for fn in (cpu, default)))(*args), 0


_platform_p = Primitive("on_platform")
_platform_p.def_impl(jax.jit(_platform_p.bind, static_argnames=("cpu", "default")))
_platform_p.def_abstract_eval(lambda *args, cpu, default: shaped_abstractify(jax.eval_shape(default, *args)))
batching.primitive_batchers[_platform_p] = _batched
mlir.register_lowering(_platform_p, mlir.lower_fun(lambda *args, cpu, default: default(*args), multiple_results=False))
mlir.register_lowering(
    _platform_p, mlir.lower_fun(lambda *args, cpu, default: cpu(*args), multiple_results=False), platform="cpu"
)
