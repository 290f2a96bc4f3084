"""What XLA does badly on some platforms and the engine does for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from exporter.compat.jax_names import JaxprEqn, set_xla_metadata
from exporter.ntk.equations import bind, evaluate
from exporter.ntk.layerwise import convolution, pooling


@dataclasses.dataclass(frozen=True)
class Lowering:
    """How a platform is lowered for.

    Attributes:
      bind: the outputs of an equation of data, of the values of its inputs.
      patches: the patches of a convolution's data.
      called: a function that is called for each of two sides alike, of large arrays, as XLA compiles it fastest.
      materializes: whether derivatives at sites must be kept from being fused into each of their uses.
      cache: bytes of a derivative beyond which it moves through memory, so that some outputs at a time may be faster
        than all; None if they are not.
    """

    bind: Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]
    patches: Callable[[JaxprEqn, Any], Any]
    called: Callable[[Callable[..., Any]], Callable[..., Any]]
    materializes: bool
    cache: int | None = None


def _bind_on_cpu(eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    return _ON_CPU.get(eqn.primitive.name, bind)(eqn, values)


def _compiled_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that XLA does not inline, so that it compiles calls with arguments of the same shapes once.

    Small operations are faster inlined, where those of several calls run beside each other: by up to a third.
    Its results have two axes on their way: of more XLA chooses the order in memory, and then copies them. The
    barrier uses all of them: JAX drops what a side has no use for, and so would make a function for each.
    """
    fn = jax.jit(fn)

    @jax.jit
    def flat(*args: Any) -> Any:
        return jax.tree.map(lambda a: a.reshape(a.shape[0], -1), fn(*args))

    def call(*args: Any) -> Any:
        results = lax.optimization_barrier(set_xla_metadata(flat(*args), inlineable="false"))
        return jax.tree.map(lambda a, spec: a.reshape(spec.shape), results, jax.eval_shape(fn, *args))

    return call


_ON_CPU = {"conv_general_dilated": convolution.bind_on_cpu, "reduce_window_max": pooling.bind_on_cpu}
DEFAULT = Lowering(bind, convolution.patches, jax.jit, materializes=False)
# XLA:CPU fuses all elementwise operations that a derivative is made of, down to the last convolution, into each of its
# uses, and so computes a ResNet's residual stream again and again: 3.2 times the time for a ResNet-50.
CPU = Lowering(_bind_on_cpu, convolution.patches_on_cpu, _compiled_once, materializes=True, cache=4 << 20)


T = TypeVar("T")


def of_platforms(platforms: Sequence[str] | None) -> tuple[Lowering, ...]:
    """How these platforms, by JAX's names, are lowered for; None for any."""
    if platforms is None:
        return CPU, DEFAULT
    return tuple(dict.fromkeys(CPU if platform == "cpu" else DEFAULT for platform in platforms))


def by_platform(compute: Callable[[Lowering], T], hows: Collection[Lowering]) -> T:
    """compute(how), of the one of these that is for the platform that is lowered for; JAX traces both."""
    if len(hows) == 1:
        return compute(*hows)
    return lax.platform_dependent(cpu=lambda: compute(CPU), default=lambda: compute(DEFAULT))


def as_on_cpu(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of pytrees of arrays, with the operations that are lowered otherwise for CPUs so."""

    def lowered(*args: Any) -> Any:
        closed, specs = jax.make_jaxpr(fn, return_shape=True)(*args)
        outputs = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), CPU.bind)
        return jax.tree.unflatten(jax.tree.structure(specs), outputs)

    return lowered


def as_on_platforms(fn: Callable[..., Any], platforms: Sequence[str]) -> Callable[..., Any]:
    """The same for each of some platforms, by JAX's names, as is fastest there."""

    def lowered(*args: Any) -> Any:
        return by_platform(lambda how: (as_on_cpu(fn) if how is CPU else fn)(*args), of_platforms(platforms))

    return lowered


@jax.custom_vjp
def materialized(x: Any, true: Any) -> Any:
    """x; its derivative goes through a loop that XLA can neither fuse nor simplify away, as long as `true` is.

    The loop has no iteration, and one would work in place: nothing is copied, as a conditional would.
    """
    return x


def _kept(true: Any, d: Any) -> tuple[Any, None]:
    _, d = lax.while_loop(lambda state: ~state[0], lambda state: (~state[0], -state[1]), (true, d))
    return d, None


materialized.defvjp(lambda x, true: (x, true), _kept)


def opaque_true(number: Any) -> Any:
    """True, which XLA cannot know: times 0 a float may also be NaN, but never 1."""
    return jnp.ravel(number)[0] * 0 != 1
