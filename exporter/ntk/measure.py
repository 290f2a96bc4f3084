"""Which of several functions that compute the same thing is fastest here: compiled, run and compared, not guessed.

XLA's FLOP counts, which neural-tangents' own AUTO goes by, do not predict times on CPU and GPU, and implementations
differ in accuracy too: on XLA:CPU in float32 neural-tangents' Jacobian contraction is off by 5e-3 (relative) for a
ResNet-50. So each candidate is timed, and one that disagrees with the most trusted candidate is never chosen.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from exporter.compat.jax_names import Tracer, eval_context, shaped_abstractify

RUNS = 3
RUNS_END_AFTER_SECONDS = 2.0

# Of code that never runs only how values are laid out in memory matters, which is decided before.
_IN_A_HURRY: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Measurement:
    """One implementation, compiled and run once on given shapes.

    Attributes:
        seconds: median wall time of a call, compilation not included; None if it did not compile or run.
        deviation: largest absolute difference from the reference's result, divided by the reference's largest
            absolute value (the worst leaf of a pytree); 0 for the reference itself, NaN where results are not finite.
        agrees: whether every leaf deviates by no more than the square root of its dtype's machine epsilon
            (3.5e-4 in float32, 1.5e-8 in float64, 0.09 in bfloat16).
        bytes: that XLA allots for intermediate values and results; 0 if it did not compile or run.
        error: why it did not compile or run, else None.
    """

    seconds: float | None
    deviation: float
    agrees: bool
    bytes: int = 0
    error: Exception | None = None


def measure_implementations(fns: Mapping[str, Callable[..., Any]], args: tuple[Any, ...]) -> dict[str, Measurement]:
    """Compiles, times and compares functions that should compute the same.

    May be called while JAX is tracing (`jit`, `vmap`, `jax2tf`): of arguments that are tracers or
    `jax.ShapeDtypeStruct`s only shape and dtype are used, and random values stand in for them.

    Args:
        fns: name to function of `args`, in order of trust: the first that compiles and runs is the reference.
        args: pytrees of arrays, the positional arguments of each function.

    Returns:
        Name to `Measurement`, in the order of `fns`.
    """
    measurements: dict[str, Measurement] = {}
    reference = None
    with eval_context():
        values = jax.tree.map(_concrete, args)
        for name, fn in fns.items():
            try:
                result, seconds, memory = _run(fn, values)
            except Exception as error:  # whatever XLA, JAX or the function raises: this implementation is passed over
                measurements[name] = Measurement(None, float("nan"), agrees=False, error=error)
                continue
            reference = result if reference is None else reference
            measurements[name] = Measurement(seconds, *_compare(result, reference), memory)
    return measurements


def bytes_of_program(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that XLA allots for a function's intermediate values and results; it is compiled, in a hurry, and not run.

    Args:
        fn: the function.
        args: pytrees of arrays or `jax.ShapeDtypeStruct`s, its positional arguments.
    """
    return _allotted(jax.jit(fn).lower(*args).compile(_IN_A_HURRY))


def fastest(measurements: Mapping[str, Measurement]) -> str:
    """The name of the fastest implementation among those that agree with the reference.

    Where nothing agrees, not even the reference with itself (its result is not finite), it is the reference.

    Raises:
        Exception: the error of the first implementation, if none of them compiled and ran.
    """
    ran = {name: m for name, m in measurements.items() if m.error is None}
    if not ran:
        first = next(iter(measurements.values()))
        assert first.error is not None
        raise first.error
    agreeing = {name: m.seconds for name, m in ran.items() if m.agrees and m.seconds is not None}
    return min(agreeing, key=agreeing.__getitem__) if agreeing else next(iter(ran))


def shapes_key(args: Any) -> Hashable | None:
    """What a choice of implementation depends on: the structure, shapes and dtypes of a pytree of arrays or tracers.

    Returns:
        A hashable, or None if some dimension is symbolic (shape polymorphism), so that nothing can be measured.
    """
    leaves, structure = jax.tree.flatten(args)
    avals = [shaped_abstractify(leaf) for leaf in leaves]
    if not all(isinstance(size, int) for aval in avals for size in aval.shape):
        return None
    return structure, tuple((aval.shape, aval.dtype) for aval in avals)


def _concrete(leaf: Any) -> Any:
    """The array itself, or a random one like it.

    Random values are of the size that initialisers give (variance 1 / fan-in for matrices and convolution kernels,
    0.5 to 1.5 for vectors, which may be biases, scales or variances), so that deep models neither overflow nor meet
    denormal numbers; integers are 0 or 1, valid as indices into almost any table.
    """
    if not isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
        return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    shape, dtype = leaf.shape, leaf.dtype
    if isinstance(leaf, Tracer) and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0, impl=str(jax.random.key_impl(cast(jax.Array, leaf)))), shape)
    rng = np.random.default_rng(0)
    if not jax.numpy.issubdtype(dtype, np.inexact):
        return rng.integers(0, 2, shape).astype(dtype)
    if len(shape) < 2:
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    return (rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[:-1])))).astype(dtype)


def _run(fn: Callable[..., Any], values: tuple[Any, ...]) -> tuple[Any, float, int]:
    """The result of `fn(*values)`, the median wall time in seconds of a warmed-up call, and its memory in bytes."""
    compiled = jax.jit(fn).lower(*values).compile()
    memory = _allotted(compiled)
    result = jax.block_until_ready(compiled(*values))
    seconds: list[float] = []
    while len(seconds) < RUNS and sum(seconds) < RUNS_END_AFTER_SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*values))
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds), memory


def _allotted(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes if analysis else 0


def _compare(result: Any, reference: Any) -> tuple[float, bool]:
    """`deviation` and `agrees` of a `Measurement`."""
    deviations, agree = [0.0], [True]
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True):
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        with np.errstate(invalid="ignore"):
            largest = np.max(np.abs(y), initial=np.finfo(np.float64).tiny)
            deviation = float(np.max(np.abs(x - y), initial=0.0) / largest)
        deviations.append(deviation)
        exact = not jax.numpy.issubdtype(b.dtype, np.inexact)  # as the indices of an embedding are
        agree.append(deviation <= (0.0 if exact else float(jax.numpy.finfo(b.dtype).eps) ** 0.5))
    return float(np.max(deviations)), all(agree)
