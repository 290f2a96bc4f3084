"""neural-tangents 0.6.5 on today's JAX, and its empirical NTK with an AUTO that measures.

neural-tangents was last released in 2023. JAX and SciPy have since moved or dropped names and arguments that it uses,
and nothing else that it needs. `import_neural_tangents` gives those names to neural-tangents' own modules and to nobody
else: JAX and SciPy are not touched, neither during the import nor after it.
"""

import builtins
import importlib
import importlib.abc
import importlib.machinery
import math
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.extend
import jax.interpreters.ad
import jax.numpy
import jax.util
import numpy as np
import scipy.linalg

from exporter.ntk.measure import fastest, measure_implementations, shapes_key

PyTree = Any
Axes = Sequence[int]
NtkFn = Callable[..., PyTree]

IMPLEMENTATIONS: Mapping[str, int] = types.MappingProxyType(
    {"auto": 0, "jacobian_contraction": 1, "ntk_vector_products": 2, "structured_derivatives": 3}
)
"""The configuration's names of `neural_tangents.NtkImplementation`'s values."""

IN_ORDER_OF_TRUST = ("structured_derivatives", "ntk_vector_products", "jacobian_contraction")

_LOCK = threading.Lock()


# Importing neural-tangents


def import_neural_tangents() -> types.ModuleType:
    """Imports neural-tangents and returns it; from then on a plain `import neural_tangents` works as well.

    `neural_tangents.experimental`, the only part that needs TensorFlow and tf2jax, is imported when it is first used.
    """
    with _LOCK:
        if "neural_tangents" not in sys.modules:
            _forget_failed_import()
            with _views_for_neural_tangents(), _experimental_left_out():
                importlib.import_module("neural_tangents")
            nt = sys.modules["neural_tangents"]
            nt.__getattr__ = _import_experimental  # type: ignore[method-assign]  # PEP 562
            sys.modules["neural_tangents._src.empirical"]._get_flops = _flops  # type: ignore[attr-defined]
    return importlib.import_module("neural_tangents")


class _View(types.ModuleType):
    """A module as neural-tangents sees it: with some names added, everything else from the real module."""

    def __init__(self, module: types.ModuleType, **names: Any):
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _safe_map(f: Callable[..., Any], *args: Sequence[Any]) -> list[Any]:
    return [f(*each) for each in zip(*args, strict=True)]


def _safe_zip(*args: Sequence[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*args, strict=True))


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if hasattr(x, "shape") else np.shape(x)


def _size(x: Any, axis: int | None = None) -> int:
    return math.prod(_shape(x)) if axis is None else _shape(x)[axis]


def _wrap_init(f: Callable[..., Any]) -> jax.extend.linear_util.WrappedFun:
    debug_info = jax.core.DebugInfo("neural_tangents", "apply_fn", (), ())
    return jax.extend.linear_util.wrap_init(f, debug_info=debug_info)


def _eigvalsh(a: Any, eigvals: tuple[int, int] | None = None, **kwargs: Any) -> np.ndarray:
    return scipy.linalg.eigvalsh(a, subset_by_index=eigvals, **kwargs)


def _views() -> dict[str, types.ModuleType]:
    """Module name to what neural-tangents gets when it imports that module.

    * `ad.config`: neural-tangents reads `jax_enable_checks` to switch on a check of its own, written with functions
      that JAX dropped without replacement; JAX's checks do not depend on it.
    * `ad.zeros_like_p`: no program contains this primitive since JAX 0.4.24; it is only the key of a rule.
    * `jnp.shape`, `jnp.size` of a `ShapeDtypeStruct` and `wrap_init` without `debug_info` still work, with a
      DeprecationWarning.
    * `eigvalsh` has renamed an argument.
    """
    moved = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    core = _View(jax.core, **{name: getattr(jax.extend.core, name) for name in moved})
    util = _View(jax.util, safe_map=_safe_map, safe_zip=_safe_zip)
    ad = _View(
        jax.interpreters.ad,
        config=types.SimpleNamespace(jax_enable_checks=False),
        source_info_util=jax.extend.source_info_util,
        zeros_like_p=jax.extend.core.Primitive("zeros_like"),
    )
    interpreters = _View(jax.interpreters, ad=ad)
    linear_util = _View(jax.extend.linear_util, wrap_init=_wrap_init)
    extend = _View(jax.extend, linear_util=linear_util)
    numpy = _View(jax.numpy, shape=_shape, size=_size)
    root = _View(jax, core=core, extend=extend, interpreters=interpreters, numpy=numpy, util=util)
    root_scipy = _View(scipy, linalg=_View(scipy.linalg, eigvalsh=_eigvalsh))
    views = (root, core, extend, linear_util, interpreters, ad, numpy, util, root_scipy)
    return {view.__name__: view for view in views}


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a module whose `import` statements, now and later, see the views in place of the modules themselves."""

    def __init__(self, name: str, path: str, views: Mapping[str, types.ModuleType]):
        super().__init__(name, path)
        self._views = views

    def exec_module(self, module: types.ModuleType) -> None:
        def import_view(*args: Any, **kwargs: Any) -> types.ModuleType:
            imported = builtins.__import__(*args, **kwargs)
            return self._views.get(imported.__name__, imported)

        vars(module)["__builtins__"] = vars(builtins) | {"__import__": import_view}
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of neural-tangents, and no others, for `_Loader`."""

    def __init__(self) -> None:
        self._views = _views()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "neural_tangents":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._views)
        return spec


@contextmanager
def _views_for_neural_tangents() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def _experimental_left_out() -> Iterator[None]:
    """neural-tangents' `__init__` imports its `experimental`, and so TensorFlow: seconds, and not always installed."""
    name = "neural_tangents.experimental"
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
        if "neural_tangents" in sys.modules:
            del sys.modules["neural_tangents"].experimental  # type: ignore[attr-defined]


def _import_experimental(name: str) -> types.ModuleType:
    if name == "experimental":
        return importlib.import_module("neural_tangents.experimental")
    raise AttributeError(f"module 'neural_tangents' has no attribute {name!r}")


def _forget_failed_import() -> None:
    """A plain `import neural_tangents` that failed before leaves submodules behind that saw JAX without the names."""
    for name in [name for name in sys.modules if name.startswith("neural_tangents.")]:
        del sys.modules[name]


def _flops(f: Callable[..., Any], optimize: bool, *args: Any, **kwargs: Any) -> float:
    """For neural-tangents' own AUTO: `_get_flops` where `cost_analysis()` is a dict, no longer a list of one."""
    lowered = jax.jit(f).lower(*args, **kwargs)
    analysis: Any = (lowered.compile() if optimize else lowered).cost_analysis()
    return analysis["flops"]


# The empirical NTK


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
