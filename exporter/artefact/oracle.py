"""Kernels in float64: from explicit Jacobians where these can be afforded, else by the engine, which is proved first.

Explicit Jacobians (`ntk.reference`) cost a gradient for each output of each example. For large models of many outputs
the layerwise engine evaluated in float64 takes their place. That it is right for this model is shown on a part that can
be afforded: of g(x) = A f(x), whose rows are some of the outputs and random ±1 combinations of all of them, the kernel
of every pair of rows is compared with explicit Jacobians of g. A wrong rule or lowering changes the derivative of some
output, and so of every combination.

Of few outputs the Jacobians that the proof needs are all that there are, so there they are the oracle, of fewer
examples: compiling the engine in float64, twice, takes longer than they do.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from exporter.compat.jax_names import enable_x64
from exporter.config import NtkConfig
from exporter.errors import ExportError
from exporter.functionalize import FunctionalModel
from exporter.ntk.count_sketch import Sketch
from exporter.ntk.layerwise.engine import layerwise_kernel_fn
from exporter.ntk.layerwise.projected import projected_features_fn
from exporter.ntk.precision import in_float64
from exporter.ntk.products import with_convolutions_as_products
from exporter.ntk.reference import FEW_RUNS, Told, Vjps, jitted_vjps, reference_ntk
from exporter.ntk.reference_features import projecting, reference_features
from exporter.progress import Note

Batch = tuple[np.ndarray, ...]

# Bounds of explicit Jacobians of all examples, in numbers: the first of time, the second of memory, 8 bytes each.
MOST_NUMBERS = 5e8
MOST_NUMBERS_AT_ONCE = 5e8

# Float64 operations a second that are counted on, of explicit Jacobians and of the engine: on two CPU cores.
EXPLICIT_RATE = 5e9
ENGINE_RATE = 2e10
SHARE = 0.1  # of the verification's seconds, for what is expected

ROWS = 8  # of A
FEW_OUTPUTS = 2 * ROWS  # so few are differentiated one by one, however large the model is
FEW_EXAMPLES = 2  # of a large model: all kinds of entries of a kernel
_BYTES_OF_PROOF = 2 << 30
_PROOF_RTOL = 1e-6  # both sides are float64
_COMBINATIONS = "outputs/combinations"  # A among the frozen variables of g


@dataclasses.dataclass(frozen=True)
class Proof:
    """On what the engine in float64 was compared with explicit Jacobians.

    Attributes:
      examples: their number.
      outputs: how many outputs by themselves.
      combinations: how many random combinations of all outputs.
      error: the largest difference, relative to the largest entry.
    """

    examples: int
    outputs: int
    combinations: int
    error: float


@dataclasses.dataclass(frozen=True)
class Shares:
    """Of the mean diagonal of the kernel, all outputs together, that which belongs to each trainable variable.

    Attributes:
      variables: the shares by path; they add up to 1.
      examples: on how many they were computed.
      outputs: how many outputs by themselves.
      combinations: how many random combinations of all outputs; where there are some it is an estimate.
    """

    variables: Mapping[str, float]
    examples: int
    outputs: int
    combinations: int


class Oracle(Protocol):
    """Kernels of a model in float64.

    Attributes:
      examples: for how many of them kernels can be afforded.
      of_other_parameters: whether they can be for other values of the trainable variables than the model's own, too.
    """

    examples: int
    of_other_parameters: bool

    @property
    def shares(self) -> Shares | None:
        """Each variable's, once a kernel of the model's own variables was asked for; None before."""

    @property
    def proof(self) -> Proof | None:
        """That it is right, which is found out when it is first asked for; None for what needs none.

        Raises:
          ExportError: it is not.
        """

    def kernel(self, trainable: Mapping[str, Any], x1: Batch, x2: Batch | None = None) -> np.ndarray:
        """float64 (n1, n2, ...) of `examples` examples x1 with x2, which are the first of x1, or with themselves."""

    def features(self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]) -> np.ndarray:
        """float64 features (n, ..., D) of the examples, of these traced axes."""

    def with_features(
        self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The kernel of the examples with themselves, and their features."""


@dataclasses.dataclass(frozen=True)
class Means:
    """What is there for a verification.

    Attributes:
      flops: operations for the derivatives of all outputs of an example; 0 if they are not known.
      seconds: that the verification may take.
      parameter_sets: for how many values of the trainable variables the SavedModel computes kernels; so does an oracle
        `of_other_parameters`.
      narrowed: the part of the outputs that the engine differentiates in their place (see `ntk.layerwise.heads`).
    """

    flops: float
    seconds: float
    parameter_sets: int
    narrowed: float = 1.0


def affordable(model: FunctionalModel, ntk: NtkConfig, n: int, *, coupled: bool, means: Means) -> tuple[bool, int]:
    """Whether kernels come from explicit Jacobians of all outputs, and of how many of n examples."""
    outputs = math.prod(size or 1 for size in model.output.shape[1:])
    work, few = means.parameter_sets * means.flops, min(n, FEW_EXAMPLES)
    examples = math.inf if coupled or work == 0 else SHARE * means.seconds * EXPLICIT_RATE / work
    if outputs <= FEW_OUTPUTS or examples >= few:
        return True, min(_examples_of_explicit(model, ntk, n), int(max(min(n, examples), few)))
    work *= means.narrowed
    if 2 * work > means.seconds * ENGINE_RATE:
        return False, 1
    return False, int(max(few, min(n, SHARE * means.seconds * ENGINE_RATE / work)))


def oracle_of(model: FunctionalModel, ntk: NtkConfig, x: Batch, *, coupled: bool, means: Means, note: Note) -> Oracle:
    """The oracle that can be afforded.

    Args:
      model: whose kernels are asked for.
      ntk: the kernel's configuration.
      x: the examples that there are at most.
      coupled: whether they influence each other.
      means: what is there.
      note: told how far it is.
    """
    explicit, n = affordable(model, ntk, len(x[0]), coupled=coupled, means=means)
    x = tuple(a[:n] for a in x)
    if explicit:
        return ExplicitOracle(model, ntk, x, coupled, note)
    return EngineOracle(model, ntk, x, note, narrowed=means.narrowed < 1)


class ExplicitOracle:
    """Kernels from explicit Jacobians of all outputs."""

    of_other_parameters = True
    proof: Proof | None = None
    shares: Shares | None = None

    def __init__(self, model: FunctionalModel, ntk: NtkConfig, x: Batch, coupled: bool, note: Note) -> None:
        """Kernels of the examples x, for which it is compiled."""
        variables = model.trainable, model.frozen
        self.examples, self._coupled, self._ntk, self._frozen = len(x[0]), coupled, ntk, model.frozen
        self._apply_fns = {False: model.apply_fn, True: in_float64(model.apply_fn, *variables, x)}
        self._trainable, self._shape = model.trainable, model.output.shape
        self._outputs = math.prod(size or 1 for size in self._shape[1:])
        of_kernel = self.examples * self._outputs
        self._vjps = _counted(jitted_vjps(model.apply_fn, *variables, x), of_kernel, note)

    def kernel(self, trainable: Mapping[str, Any], x1: Batch, x2: Batch | None = None) -> np.ndarray:
        """See `Oracle`."""
        if self._coupled and x2 is not None:
            return self._kernel(trainable, x1, x2)
        kernel = self._kernel(trainable, x1)
        return kernel if x2 is None else kernel[:, : len(x2[0])]

    def features(self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]) -> np.ndarray:
        """See `Oracle`."""
        return reference_features(
            self._apply_fn(trainable), trainable, self._frozen, x, sketch, trace_axes=trace_axes, vjps=self._vjps
        )

    def with_features(
        self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Oracle`; both from one Jacobian, where the kernel is of the same traced outputs and no diagonal ones."""
        sizes = [size for size in self._shape[1:] if size is not None]
        ours, theirs = ({axis % len(self._shape) - 1 for axis in axes} for axes in (self._ntk.trace_axes, trace_axes))
        if self._ntk.diagonal_axes or ours != theirs or None in self._shape[1:]:
            return self.kernel(trainable, x), self.features(trainable, x, sketch, trace_axes)
        traced = math.prod(sizes[axis] for axis in ours)
        kept = [size for axis, size in enumerate(sizes) if axis not in ours]
        features = np.zeros((len(x[0]), math.prod(kept), sketch.dimensions))
        kernel = self._kernel(trainable, x, told=[projecting(features, trainable, sketch, traced)])
        return kernel, features.reshape(len(features), *kept, -1)

    def _kernel(
        self, trainable: Mapping[str, Any], x1: Batch, x2: Batch | None = None, told: Sequence[Told] = ()
    ) -> np.ndarray:
        squares: dict[str, float] = {}
        own = trainable is self._trainable and self.shares is None
        kernel = reference_ntk(
            self._apply_fn(trainable),
            trainable,
            self._frozen,
            x1,
            x2,
            trace_axes=self._ntk.trace_axes,
            diagonal_axes=self._ntk.diagonal_axes,
            coupled=self._coupled,
            memory=_BYTES_OF_PROOF,
            vjps=self._vjps,
            told=[*told, _summing(squares, trainable)] if own else told,
        )
        if own:
            self.shares = _shares(squares, self.examples, self._outputs, 0)
        return kernel

    def _apply_fn(self, trainable: Mapping[str, Any]) -> Any:
        """Of float64 variables, which may have been moved by less than a float32 has, that of float64."""
        return self._apply_fns[any(value.dtype == np.float64 for value in trainable.values())]


class EngineOracle:
    """Kernels by the engine in float64, which is proved first."""

    of_other_parameters = False

    def __init__(self, model: FunctionalModel, ntk: NtkConfig, x: Batch, note: Note, *, narrowed: bool = False) -> None:
        """Kernels of the examples x; `narrowed` if they need much fewer derivatives than features do."""
        self.examples, self._model, self._ntk, self._x, self._note = len(x[0]), model, ntk, x, note
        self._narrowed = narrowed
        self.shares: Shares | None = None

    @functools.cached_property
    def proof(self) -> Proof:
        """See `prove`."""
        squares: dict[str, float] = {}
        few = tuple(a[: min(FEW_EXAMPLES, len(a))] for a in self._x)
        proof = prove(self._model, few, self._note, squares)
        self.shares = _shares(squares, proof.examples, proof.outputs, proof.combinations)
        return proof

    @functools.cached_property
    def _kernel(self) -> Callable[..., np.ndarray]:
        model, ntk = self._model, self._ntk
        return _engine(model.apply_fn, ntk.trace_axes, ntk.diagonal_axes, model.trainable, model.frozen, self._x)

    def kernel(self, trainable: Mapping[str, Any], x1: Batch, x2: Batch | None = None) -> np.ndarray:
        """See `Oracle`."""
        assert self.proof is not None  # raises if it is wrong
        self._note(f"the kernel of {self.examples} examples in float64")
        kernel = self._kernel(trainable, self._model.frozen, x1)
        return kernel if x2 is None else kernel[:, : len(x2[0])]

    def features(self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]) -> np.ndarray:
        """See `Oracle`."""
        assert self.proof is not None
        return self._features(sketch, tuple(trace_axes), False)(trainable, self._model.frozen, x)

    def with_features(
        self, trainable: Mapping[str, Any], x: Batch, sketch: Sketch, trace_axes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Oracle`; both of the same derivatives, where all outputs are traced."""
        rank = len(self._model.output.shape)
        all_traced = all(len({a % rank for a in axes}) == rank - 1 for axes in (trace_axes, self._ntk.trace_axes))
        if self._narrowed or not all_traced:
            return self.kernel(trainable, x), self.features(trainable, x, sketch, trace_axes)
        assert self.proof is not None
        self._note(f"the kernel and features of {self.examples} examples in float64")
        features, kernel = self._features(sketch, tuple(trace_axes), True)(trainable, self._model.frozen, x)
        return kernel, features

    @functools.cache  # noqa: B019  # of one oracle, that an export has for its time
    def _features(self, sketch: Sketch, trace_axes: tuple[int, ...], with_kernel: bool) -> Callable[..., Any]:
        model = self._model
        wide = in_float64(model.apply_fn, model.trainable, model.frozen, self._x)
        fn = projected_features_fn(
            wide,
            sketch,
            trace_axes=trace_axes,
            memory=_BYTES_OF_PROOF // 2,
            platforms=[jax.default_backend()],
            with_kernel=with_kernel,
        )
        return _in_wide(fn)


def _shares(squares: Mapping[str, float], examples: int, outputs: int, combinations: int) -> Shares | None:
    """None where there are no squares, or all are zero."""
    total = sum(squares.values())
    if not (total > 0 and math.isfinite(total)):
        return None
    return Shares({path: square / total for path, square in squares.items()}, examples, outputs, combinations)


def _summing(squares: dict[str, float], trainable: Mapping[str, Any]) -> Told:
    """Adds up the squares of the derivatives by each variable."""

    def add(_: slice, __: int, jacobian: Sequence[np.ndarray]) -> None:
        for path, part in zip(sorted(trainable), jacobian, strict=True):
            squares[path] = squares.get(path, 0.0) + float(np.vdot(part, part))

    return add


def prove(model: FunctionalModel, x: Batch, note: Note, squares: dict[str, float] | None = None) -> Proof:
    """Compares the engine in float64 with explicit Jacobians, on some outputs and combinations of all.

    Args:
      model: whose engine it is.
      x: the examples.
      note: told how far it is.
      squares: is told the sum of the squares of the derivatives by each variable.

    Raises:
      ExportError: they differ.
    """
    count = math.prod(size or 1 for size in model.output.shape[1:])
    parameters = sum(v.size for v in model.trainable.values())
    rows = max(1, min(ROWS, count, int(_BYTES_OF_PROOF / (8 * len(x[0]) * parameters))))
    matrix, outputs = _combinations(rows, count)

    def combined(trainable: Any, frozen: Any, x: Any) -> Any:
        frozen = dict(frozen)
        matrix = frozen.pop(_COMBINATIONS)
        y = model.apply_fn(trainable, frozen, x)
        return y.reshape(y.shape[0], -1) @ matrix.T.astype(y.dtype)

    frozen = {**model.frozen, _COMBINATIONS: matrix.astype(np.float32)}
    arguments = model.trainable, frozen, x
    vjps = _counted(jitted_vjps(combined, *arguments), len(x[0]) * rows, note)
    told = [] if squares is None else [_summing(squares, model.trainable)]
    expected = reference_ntk(combined, *arguments, trace_axes=(), vjps=vjps, told=told)
    note("the engine in float64, compared with these")
    received = _engine(combined, (), (), *arguments)(*arguments)
    error = float(np.max(np.abs(received - expected)) / (np.max(np.abs(expected)) or 1.0))
    if not error <= _PROOF_RTOL:
        raise ExportError(
            f"Verification failed: expected the layerwise kernel in float64 within {_PROOF_RTOL:g} of explicit "
            f"Jacobians, on {outputs} outputs and {rows - outputs} combinations of all, received a difference of "
            f"{error:.3g}. Choose another ntk.implementation, and please report the model."
        )
    return Proof(len(x[0]), outputs, rows - outputs, error)


def _combinations(rows: int, count: int) -> tuple[np.ndarray, int]:
    """A (rows, count): single outputs, all of them if there are so few, then random signs; and how many are single."""
    if rows == count:
        return np.eye(count), count
    rng = np.random.default_rng(0)
    single = rows // 2
    matrix = rng.choice([-1.0, 1.0], (rows, count))
    matrix[:single] = 0.0
    matrix[np.arange(single), rng.choice(count, single, replace=False)] = 1.0
    return matrix, single


def _engine(
    apply_fn: Any, trace_axes: Sequence[int], diagonal_axes: Sequence[int], *arguments: Any
) -> Callable[..., np.ndarray]:
    """kernel(trainable, frozen, x) of examples with themselves by the layerwise engine in float64, compiled once.

    The function is made one of float64 first: constants of derivatives, such as 2/√π of erf's, are of its dtype.
    """
    return _in_wide(
        layerwise_kernel_fn(
            in_float64(apply_fn, *arguments),
            trace_axes=trace_axes,
            diagonal_axes=diagonal_axes,
            memory=_BYTES_OF_PROOF // 2,
            platforms=[jax.default_backend()],
        )
    )


def _in_wide(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of float64 compiled, with its arguments made float64, to NumPy's arrays."""
    compiled = jax.jit(fn, compiler_options=dict(FEW_RUNS))

    def wide(value: Any) -> np.ndarray:
        return np.asarray(value, np.float64) if jnp.issubdtype(value.dtype, jnp.floating) else value

    def run(*arguments: Any) -> Any:
        with enable_x64():
            return jax.tree.map(np.asarray, compiled(*jax.tree.map(wide, arguments)))

    return run


def _examples_of_explicit(model: FunctionalModel, ntk: NtkConfig, examples: int) -> int:
    """So many examples, or as many as the reference can be computed for; 1 at least."""
    outputs = model.output.shape[1:]
    alone = {a % len(model.output.shape) - 1 for a in (*ntk.trace_axes, *ntk.diagonal_axes)}
    kept = math.prod(size or 1 for a, size in enumerate(outputs) if a not in alone)
    parameters = sum(v.size for v in model.trainable.values())
    most = min(MOST_NUMBERS / math.prod(size or 1 for size in outputs), MOST_NUMBERS_AT_ONCE / kept) / parameters
    return max(1, min(examples, int(most)))


def _counted(vjps: Vjps, of_kernel: int, note: Note) -> Vjps:
    """`vjps` that tells how many gradients it has computed; a kernel needs so many at least."""
    done = 0

    def counted(trainable: Any, frozen: Any, x: tuple[Any, ...], cotangents: Any) -> list[Any]:
        nonlocal done
        gradients = vjps(trainable, frozen, x, cotangents)
        done += len(cotangents)
        note(f"{done:,} float64 gradients, {of_kernel:,} for a kernel", (done - 1) % of_kernel + 1, of_kernel)
        return gradients

    return counted


def forward_in_float64(model: FunctionalModel, x: Batch) -> np.ndarray:
    """The model's output."""
    forward = with_convolutions_as_products(in_float64(model.apply_fn, model.trainable, model.frozen, x))
    with enable_x64():
        return np.asarray(
            jax.jit(forward, compiler_options=dict(FEW_RUNS))(model.trainable, model.frozen, tuple(map(jnp.asarray, x)))
        )
