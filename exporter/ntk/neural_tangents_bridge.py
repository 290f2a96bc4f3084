"""neural-tangents' empirical NTK, with an AUTO that measures."""

import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exporter.compat.neural_tangents_names import import_neural_tangents
from exporter.ntk.measure import fastest, measure_implementations, shapes_key

PyTree = Any
Axes = Sequence[int]
NtkFn = Callable[..., PyTree]

IMPLEMENTATIONS: Mapping[str, int] = types.MappingProxyType(
    {"auto": 0, "jacobian_contraction": 1, "ntk_vector_products": 2, "structured_derivatives": 3}
)
"""The configuration's names of `neural_tangents.NtkImplementation`'s values."""

IN_ORDER_OF_TRUST = ("structured_derivatives", "ntk_vector_products", "jacobian_contraction")


def empirical_ntk_fn(
    f: Callable[..., PyTree],
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: int | str = 1,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> NtkFn:
    """`neural_tangents.empirical_ntk_fn`, the same arguments and defaults, with an AUTO that measures.

    The kernel is Θ(x1, x2) = J(x1) J(x2)ᵀ with J the Jacobian of f over `params` (Novak et al. 2022, arXiv 2206.08720).
    Its axes follow those of f's output, in their order, whatever the order of `trace_axes` and `diagonal_axes`:

    * an axis in `trace_axes` is absent: the kernel is the mean over its diagonal (the trace divided by the size);
    * an axis in `diagonal_axes` is there once;
    * any other axis is there twice, side by side: first that of f(x1), then that of f(x2).

    So an output (N, H, O) gives (N1, N2, H, H, O, O) for `trace_axes=(), diagonal_axes=()`, (N1, N2, H) for
    `trace_axes=(-1,), diagonal_axes=(1,)`, and (N, H, H) for `trace_axes=(2,), diagonal_axes=(0,)`, where
    N1 = N2 = N is required and example i of x1 meets example i of x2 only. A pytree of outputs gives a pytree of
    kernels of the same structure, each of one output with itself.

    Args:
        f: `f(params, x, **kwargs)`, pytrees of arrays in and out.
        trace_axes: output axes to average over.
        diagonal_axes: output axes of which only the diagonal is wanted.
        vmap_axes: None, or an axis or a triple (inputs, outputs, kwargs) of axes along which f treats examples
            independently; see `neural_tangents.empirical_ntk_fn`. Structured derivatives fail where the axis of the
            outputs is not 0 and N1 ≠ N2.
        implementation: a `neural_tangents.NtkImplementation`, its number, or its name in `IMPLEMENTATIONS`. AUTO (0)
            compiles and times all three on the arguments' shapes (see `exporter.ntk.measure`) and uses the fastest
            of those that agree with structured derivatives; it does so once for each combination of shapes and
            dtypes, also under a trace. With symbolic shapes nothing can be measured: structured derivatives.
        _j_rules: of structured derivatives: use custom Jacobian rules; for debugging.
        _s_rules: of structured derivatives: use structure rules; for debugging.
        _fwd: of structured derivatives: forward mode for primitives without a rule; None decides by size.

    Returns:
        `ntk_fn(x1, x2, params, **kwargs)`; `x2=None` stands for x1.

    Raises:
        ValueError: for an implementation that does not exist.
    """
    number = _implementation_number(implementation)
    settings = dict(trace_axes=trace_axes, diagonal_axes=diagonal_axes, vmap_axes=vmap_axes)
    fns = implementations(f, **settings, _j_rules=_j_rules, _s_rules=_s_rules, _fwd=_fwd)
    if number == IMPLEMENTATIONS["auto"]:
        return fastest_ntk_fn(fns)
    return next(fns[name] for name in fns if IMPLEMENTATIONS[name] == number)


def implementations(f: Callable[..., PyTree], **settings: Any) -> dict[str, NtkFn]:
    """neural-tangents' three ways to compute the NTK of `f`, by name and in order of trust.

    Made for `measure_implementations(implementations(f, ...), (x1, x2, params))`.

    Args:
        f: as for `empirical_ntk_fn`.
        **settings: the arguments of `neural_tangents.empirical_ntk_fn`, except `f` and `implementation`.
    """
    nt = import_neural_tangents()

    def ntk_fn_of(name: str) -> NtkFn:
        ntk_fn = nt.empirical_ntk_fn(f, implementation=IMPLEMENTATIONS[name], **settings)

        def quiet_ntk_fn(x1: PyTree, x2: PyTree, params: PyTree, **kwargs: Any) -> PyTree:
            with warnings.catch_warnings():
                # A hint to its developers: a primitive without a rule is differentiated with a JVP or VJP instead.
                warnings.filterwarnings("ignore", message="No Jacobian rule found for")
                return ntk_fn(x1, x2, params, **kwargs)

        return quiet_ntk_fn

    return {name: ntk_fn_of(name) for name in IN_ORDER_OF_TRUST}


def _implementation_number(implementation: int | str) -> int:
    if isinstance(implementation, str) and implementation in IMPLEMENTATIONS:
        return IMPLEMENTATIONS[implementation]
    if isinstance(implementation, int) and implementation in IMPLEMENTATIONS.values():
        return int(implementation)
    expected = ", ".join(f"{name!r} ({value})" for name, value in IMPLEMENTATIONS.items())
    raise ValueError(f"Unknown implementation of the NTK: expected one of {expected}, received {implementation!r}.")


def fastest_ntk_fn(fns: Mapping[str, NtkFn]) -> NtkFn:
    """An NTK function that measures `fns` for each new combination of shapes and dtypes, and calls the fastest.

    Args:
        fns: name to `ntk_fn(x1, x2, params, **kwargs)`, in order of trust (see `measure_implementations`); with
            symbolic shapes it is the first.
    """
    chosen: dict[Any, str] = {None: next(iter(fns))}

    def with_kwargs_last(fn: NtkFn) -> NtkFn:
        return lambda x1, x2, params, kwargs: fn(x1, x2, params, **kwargs)

    def ntk_fn(x1: PyTree, x2: PyTree, params: PyTree, **kwargs: Any) -> PyTree:
        args = (x1, x2, params, kwargs)
        key = shapes_key(args)
        if key not in chosen:
            measurable = {name: with_kwargs_last(fn) for name, fn in fns.items()}
            chosen[key] = fastest(measure_implementations(measurable, args))
        return fns[chosen[key]](x1, x2, params, **kwargs)

    return ntk_fn
