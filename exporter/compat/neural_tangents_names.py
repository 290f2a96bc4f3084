"""neural-tangents 0.6.5 on today's JAX. Seen with JAX 0.7.1 to 0.10.2.

It was last released in 2023. JAX and SciPy have since moved, changed or dropped names that it uses, and nothing else
that it needs. `import_neural_tangents` gives those names to neural-tangents' own modules and to nobody else: JAX and
SciPy are not touched, neither during the import nor after it.
"""

import builtins
import importlib
import importlib.abc
import importlib.machinery
import math
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.extend
import jax.interpreters.ad
import jax.numpy
import numpy as np
import scipy.linalg

from exporter.compat.jax_names import JaxprEqn, bind
from exporter.errors import ExportError

JAX = ("0.7.1", "0.10.2")  # the first and the last that it was tried with

_LOCK = threading.Lock()


def import_neural_tangents() -> types.ModuleType:
    """Imports neural-tangents and returns it; from then on a plain `import neural_tangents` works as well.

    `neural_tangents.experimental`, the only part that needs TensorFlow and tf2jax, is imported when it is first used.

    Raises:
        NeuralTangentsError: it is not installed, or needs what the installed JAX has no more.
    """
    with _LOCK:
        try:
            if "neural_tangents" not in sys.modules:
                _forget_failed_import()
                _import()
            return importlib.import_module("neural_tangents")
        except (ImportError, AttributeError) as error:
            raise NeuralTangentsError(
                f"Expected neural-tangents 0.6.5 and a JAX that it runs with, for its implementations of the kernel; "
                f"received JAX {jax.__version__} and {type(error).__name__}: {error}. Install jax>={JAX[0]},<={JAX[1]} "
                "and neural-tangents, or choose the implementation 'layerwise', which does without."
            ) from error


class NeuralTangentsError(ExportError):
    """neural-tangents cannot be imported."""


def _import() -> None:
    with _views_for_neural_tangents(), _experimental_left_out():
        importlib.import_module("neural_tangents")
    nt = sys.modules["neural_tangents"]
    nt.__getattr__ = _import_experimental  # type: ignore[method-assign]  # PEP 562
    empirical: Any = sys.modules["neural_tangents._src.empirical"]
    empirical._get_flops = _flops
    empirical._eqn_vjp_fn = _cotangents_of_inputs


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


def _dtype(x: Any) -> np.dtype:
    return np.dtype(getattr(x, "dtype", x))


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if hasattr(x, "shape") else np.shape(x)


def _size(x: Any, axis: int | None = None) -> int:
    return math.prod(_shape(x)) if axis is None else _shape(x)[axis]


def _wrap_init(f: Callable[..., Any]) -> jax.extend.linear_util.WrappedFun:
    of = jax.extend.core if hasattr(jax.extend.core, "DebugInfo") else jax.core
    debug_info = of.DebugInfo("neural_tangents", "apply_fn", (), ())
    return jax.extend.linear_util.wrap_init(f, debug_info=debug_info)


class _Unknown:
    """What linearization knows of an output's derivative."""

    def is_known(self) -> bool:
        return False


def _linearize(f: jax.extend.linear_util.WrappedFun, *primals: Any, has_aux: bool) -> tuple[Any, Any, Any, Any]:
    """`ad.linearize` until JAX 0.7: f(*primals), and its derivative as a jaxpr of the primals' tangents."""
    outputs, derivative = jax.linearize(f.call_wrapped, *primals)
    closed = jax.make_jaxpr(derivative)(*primals)
    return outputs, [_Unknown() for _ in outputs], closed.jaxpr, closed.consts


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
    core = _View(jax.core, DShapedArray=_Unknown, **{name: getattr(jax.extend.core, name) for name in moved})
    util = _View(types.ModuleType("jax.util"), safe_map=_safe_map, safe_zip=_safe_zip)
    ad = _View(
        jax.interpreters.ad,
        config=types.SimpleNamespace(jax_enable_checks=False),
        linearize=_linearize,
        reducing_transposes={},
        source_info_util=jax.extend.source_info_util,
        zeros_like_p=jax.extend.core.Primitive("zeros_like"),
    )
    interpreters = _View(jax.interpreters, ad=ad)
    linear_util = _View(jax.extend.linear_util, wrap_init=_wrap_init)
    extend = _View(jax.extend, linear_util=linear_util)
    numpy = _View(jax.numpy, dtype=_dtype, shape=_shape, size=_size)
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
        def import_view(name: str, *args: Any, **kwargs: Any) -> types.ModuleType:
            if name == "jax.util":
                return self._views[name]
            imported = builtins.__import__(name, *args, **kwargs)
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
            del sys.modules["neural_tangents"].experimental  # type: ignore[attr-defined]  # an import set it


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


def _cotangents_of_inputs(eqn: JaxprEqn | None, cotangent: Any, *values: Any) -> Sequence[Any]:
    """For neural-tangents' structured derivatives: `_eqn_vjp_fn`, of JAX's rules as they are since JAX 0.8.

    Args:
        eqn: an equation with one output, linear in the inputs that have no value; None stands for the identity.
        cotangent: of its output.
        values: of its inputs, or UndefinedPrimal.

    Returns:
        The cotangents of the inputs without a value, None or Zero of the others.
    """
    if eqn is None:
        return (cotangent,)
    ad = jax.interpreters.ad
    if eqn.primitive in ad.primitive_transposes:
        return ad.primitive_transposes[eqn.primitive](cotangent, *values, **eqn.params)
    if type(cotangent) is ad.Zero:
        return [None] * len(values)
    unknown = [i for i, value in enumerate(values) if ad.is_undefined_primal(value)]

    def linear(*inputs: Any) -> Any:
        merged = dict(enumerate(values)) | dict(zip(unknown, inputs, strict=True))
        (output,) = bind(eqn.primitive, eqn.params, list(merged.values()))
        return output

    specs = [jax.ShapeDtypeStruct(values[i].aval.shape, values[i].aval.dtype) for i in unknown]
    cotangents = dict(zip(unknown, jax.linear_transpose(linear, *specs)(cotangent), strict=True))
    return [cotangents.get(i) for i in range(len(values))]
