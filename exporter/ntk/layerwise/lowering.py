"""What XLA does badly on some platforms and the engine does for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from exporter.compat.jax_names import JaxprEqn, set_xla_metadata
from exporter.ntk.equations import bind, evaluate
from exporter.ntk.layerwise import convolution, depthwise, patches, pooling
from exporter.ntk.layerwise.platforms import on_platform
from exporter.ntk.layerwise.window import Window

Bind = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Lowering:
    """How some platforms are lowered for.

    Attributes:
      bind: the outputs of an equation of data, of the values of its inputs.
      patches: the patches of a convolution's data.
      depthwise: window, data and derivatives to the derivative by a depthwise kernel (see `depthwise.by_products`).
      called: a function that is called for each of two sides alike, of large arrays, as XLA compiles it fastest.
      materialized: x, and something false that XLA cannot know, to x, whose derivative is kept from being fused into
        each of its uses; None where all fusions are good.
      stored: the same of x itself, whose derivative may be fused.
      cache: bytes of a derivative beyond which it moves through memory, so that some outputs at a time may be faster
        than all; None if they are not.
    """

    bind: Bind
    patches: Callable[[JaxprEqn, Any], Any]
    depthwise: Callable[[Window, Any, Any], Any]
    called: Callable[[Callable[..., Any]], Callable[..., Any]]
    materialized: Callable[[Any, Any], Any] | None
    stored: Callable[[Any, Any], Any] | None
    cache: int | None = None


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


def _materializing(keep: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """x, whose derivative d is keep(false, d)."""

    @jax.custom_vjp
    def materialized(x: Any, false: Any) -> Any:
        return x

    materialized.defvjp(lambda x, false: (x, false), lambda false, d: (keep(false, d), None))
    return materialized


def _storing(keep: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """x, as keep(false, x), whose derivative is d."""

    @jax.custom_vjp
    def stored(x: Any, false: Any) -> Any:
        return keep(false, x)

    stored.defvjp(lambda x, false: (keep(false, x), None), lambda _, d: (d, None))
    return stored


def _through_loop(false: Any, d: Any) -> Any:
    """d, by a loop that XLA can neither fuse nor simplify away, as long as it does not know `false`.

    The loop has no iteration, and one would work in place: nothing is copied, as a conditional would.
    """
    return lax.while_loop(lambda state: state[0], lambda state: (state[0], -state[1]), (false, d))[1]


def _binding(convolve: convolution.Convolve, transposed: convolution.Convolve) -> Bind:
    """Binds equations, convolutions by these, and maxima over windows with a derivative that is summed over taps."""
    ours: dict[str, Bind] = {
        "conv_general_dilated": functools.partial(convolution.bind_channels_last, convolve, transposed),
        "reduce_window_max": pooling.bind,
    }
    return lambda eqn, values: ours.get(eqn.primitive.name, bind)(eqn, values)


@dataclasses.dataclass(frozen=True)
class _Given:
    """A function with its first arguments; unlike `functools.partial`, equal ones are equal."""

    fn: Callable[..., Any]
    first: tuple[Any, ...]

    def __call__(self, *others: Any) -> Any:
        return self.fn(*self.first, *others)


def _convolve_anywhere(window: Window, groups: int, options: convolution.Options, a: Any, w: Any) -> Any:
    first = (window, groups, options)
    return on_platform(_Given(convolution.on_cpu, first), _Given(convolution.by_xla, first))(a, w)


def _transposed_anywhere(window: Window, groups: int, options: convolution.Options, d: Any, w: Any) -> Any:
    first = (window, groups, options)
    return on_platform(_Given(convolution.transposed_on_cpu, first), _Given(convolution.transposed_by_xla, first))(d, w)


def _patches_anywhere(window: Window, groups: int, a: Any) -> Any:
    first = (window, groups)
    return on_platform(_Given(patches.copied, first), _Given(patches.sliced, first))(a)


def _depthwise_anywhere(window: Window, a: Any, d: Any) -> Any:
    return on_platform(_Given(depthwise.by_sums, (window,)), _Given(depthwise.by_products, (window,)))(a, d)


def _through_loop_on_cpu(false: Any, d: Any) -> Any:
    return on_platform(_through_loop, _second)(false, d)


def _second(_: Any, d: Any) -> Any:
    return d


DEFAULT = Lowering(bind, functools.partial(patches.of_data, patches.sliced), depthwise.by_products, jax.jit, None, None)
# XLA:CPU fuses all elementwise operations that a derivative is made of, down to the last convolution, into each of its
# uses, and so computes a ResNet's residual stream again and again: 3.2 times the time for a ResNet-50.
CPU = Lowering(
    _binding(convolution.on_cpu, convolution.transposed_on_cpu),
    functools.partial(patches.of_data, patches.copied),
    depthwise.by_sums,
    _compiled_once,
    _materializing(_through_loop),
    _storing(_through_loop),
    cache=4 << 20,
)
# One trace for both: only what differs between them is there for each.
ANYWHERE = Lowering(
    _binding(_convolve_anywhere, _transposed_anywhere),
    functools.partial(patches.of_data, _patches_anywhere),
    _depthwise_anywhere,
    jax.jit,
    _materializing(_through_loop_on_cpu),
    _storing(_through_loop_on_cpu),
)


T = TypeVar("T")


def of_platforms(platforms: Sequence[str] | None) -> tuple[Lowering, ...]:
    """How each of these platforms, by JAX's names, is lowered for; None for any."""
    if platforms is None:
        return CPU, DEFAULT
    return tuple(dict.fromkeys(CPU if platform == "cpu" else DEFAULT for platform in platforms))


def of_all(platforms: Sequence[str] | None) -> Lowering:
    """How all of these platforms are lowered for by one trace."""
    first, *others = of_platforms(platforms)
    return ANYWHERE if others else first


def by_platform(compute: Callable[[Lowering], T], hows: Collection[Lowering]) -> T:
    """compute(how), of the one of these that is for the platform that is lowered for; JAX traces both."""
    if len(hows) == 1:
        return compute(*hows)
    return lax.platform_dependent(cpu=lambda: compute(CPU), default=lambda: compute(DEFAULT))


def as_on_platforms(fn: Callable[..., Any], platforms: Sequence[str]) -> Callable[..., Any]:
    """A function of pytrees of arrays, with the operations of which some of these platforms want others."""

    def lowered(*args: Any) -> Any:
        closed, specs = jax.make_jaxpr(fn, return_shape=True)(*args)
        outputs = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), of_all(platforms).bind)
        return jax.tree.unflatten(jax.tree.structure(specs), outputs)

    return lowered


def opaque_false(number: Any) -> Any:
    """False, which XLA cannot know: times 0 a float may also be NaN, but never 1."""
    return jnp.ravel(number)[0] * 0 == 1
