"""The kernel of an apply_fn as JAX functions of parameters and inputs: in one, or as features and their contraction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from exporter.ntk import neural_tangents_bridge
from exporter.ntk.layerwise.engine import layerwise_kernel_fn
from exporter.ntk.reference import ApplyFn

# kernel(trainable, frozen, x1, x2) -> (n1, n2, ...), the inputs of each side being a tuple of arrays.
KernelFn = Callable[[Mapping[str, Any], Mapping[str, Any], tuple[Any, ...], tuple[Any, ...]], Any]


def kernel_fn(
    apply_fn: ApplyFn,
    *,
    implementation: str,
    trace_axes: Sequence[int],
    diagonal_axes: Sequence[int],
    coupled: bool = False,
    memory: int = 1 << 30,
    platforms: Sequence[str] | None = None,
) -> KernelFn:
    """J(x1) J(x2)ᵀ of `apply_fn` over its trainable parameters (Novak et al. 2022, arXiv 2206.08720).

    Args:
      apply_fn: `apply_fn(trainable, frozen, inputs)`, of shape (n, *S).
      implementation: "layerwise", or the name of one of neural-tangents' (`neural_tangents_bridge.IMPLEMENTATIONS`).
      trace_axes: axes of the output, counted with the batch axis, over which to average.
      diagonal_axes: axes of the output of which only equal positions are kept.
      coupled: whether examples of a batch influence each other's outputs.
      memory: bytes that "layerwise" may take for the features of all outputs at once; else it takes some at a time.
      platforms: those that the kernel is lowered for, in JAX's names; None for any.

    Returns:
      A function to (n1, n2, ...), kept axes ordered as by `reference.contract_axes`.
    """
    if implementation == "layerwise":
        return layerwise_kernel_fn(
            apply_fn,
            trace_axes=trace_axes,
            diagonal_axes=diagonal_axes,
            coupled=coupled,
            memory=memory,
            platforms=platforms,
        )

    def kernel(trainable: Any, frozen: Any, x1: tuple[Any, ...], x2: tuple[Any, ...]) -> Any:
        ntk_fn = neural_tangents_bridge.empirical_ntk_fn(
            lambda params, x: apply_fn(params, frozen, x),
            trace_axes=tuple(trace_axes),
            diagonal_axes=tuple(diagonal_axes),
            vmap_axes=None if coupled else 0,
            implementation=implementation,
        )
        return ntk_fn(tuple(x1), tuple(x2), trainable)

    return kernel


class KernelParts(Protocol):
    """A kernel in two steps, so that what it needs of an example is computed once for all the pairs that it is in.

    Attributes:
      passes: the kernel is the sum of so many contractions, each of other features.
      replaced: paths of variables that features take those of `replace` for, made once for all that are contracted.
      variable_specs: shapes and dtypes of the trainable and frozen variables that features take, by path.
    """

    passes: int
    replaced: tuple[str, ...]
    variable_specs: tuple[Mapping[str, Any], Mapping[str, Any]]

    @property
    def overhead(self) -> float:
        """How many examples' work takes as long as a program takes without any."""

    def replace(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """What features take in the place of the `replaced` variables, of these."""

    def features(self, trainable: Any, frozen: Any, x: tuple[Any, ...], number: Any = 0) -> Any:
        """A pytree of arrays (n, ...), of examples x, for one of the passes."""

    def specs(self, n: int) -> Any:
        """Shapes and dtypes of the features of n examples."""

    def contract(self, trainable: Any, frozen: Any, features1: Any, features2: Any) -> Any:
        """What is (n1, n2, ...) of the kernel of examples with these features."""


class Undivided:
    """A kernel that has no features but the inputs themselves."""

    passes = 1
    replaced: tuple[str, ...] = ()
    overhead = 0.0

    def __init__(
        self,
        kernel: KernelFn,
        variables: tuple[Mapping[str, Any], Mapping[str, Any]],
        inputs: Sequence[jax.ShapeDtypeStruct],
    ) -> None:
        """Takes the kernel of two batches, trainable and frozen variables, and as shapes an example, each (1, ...)."""
        self.contract, self.variable_specs, self._inputs = kernel, variables, tuple(inputs)

    def replace(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def features(self, trainable: Any, frozen: Any, x: tuple[Any, ...], number: Any = 0) -> Any:
        """x itself."""
        return x

    def specs(self, n: int) -> Any:
        """Those of x."""
        return tuple(jax.ShapeDtypeStruct((n, *spec.shape[1:]), spec.dtype) for spec in self._inputs)


def diagonal_fn(parts: KernelParts) -> Callable[..., Any]:
    """diagonal(trainable, frozen, features) -> (n, ...): what `parts.contract` gives for each example with itself."""

    def diagonal(trainable: Any, frozen: Any, features: Any) -> Any:
        def one(features: Any) -> Any:
            batch = jax.tree.map(lambda a: a[None], features)
            return parts.contract(trainable, frozen, batch, batch)[0, 0]

        return jax.vmap(one)(features)

    return diagonal


def coupled_diagonal_fn(kernel: KernelFn) -> Callable[..., Any]:
    """diagonal(trainable, frozen, x) -> (n, ...), of a kernel whose examples influence each other."""
    return lambda trainable, frozen, x: jnp.einsum("nn...->n...", kernel(trainable, frozen, x, x))


def swap_permutation(output_rank: int, trace_axes: Sequence[int], diagonal_axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of the kernel in the order that exchanges x1 and x2: K(x2, x1) = transpose(K(x1, x2), swap)."""
    trace, diagonal = ({a % output_rank for a in axes} for axes in (trace_axes, diagonal_axes))
    swap: list[int] = []
    for axis in range(output_rank):
        k = len(swap)
        if axis not in trace:
            swap += [k] if axis in diagonal else [k + 1, k]
    return tuple(swap)
