"""The module that is saved: variables, and for each signature its inputs, the checks of these, and its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf

from exporter.functionalize import Front, TensorSpec
from exporter.graph.traced import traced_once
from exporter.plan.signatures import SIGNATURES, Signature, input_names, param_names

# compute(params, frozen, *sides): params and frozen by path, each side a list of tensors (n, ...) in the model's order.
Compute = Callable[..., tf.Tensor]


@dataclasses.dataclass(frozen=True)
class References:
    """How kernels with kept examples are computed.

    Attributes:
      features: compute(params, frozen, x): what is to be kept of examples, a list of tensors (n, ...).
      kernel: compute(params, frozen, x, kept): the kernel of x with those.
      specs: of what is kept.
    """

    features: Compute
    kernel: Compute
    specs: Sequence[tf.TensorSpec]


class KernelModule(tf.Module):
    """What is saved: the variables, and one function for each signature.

    Attributes:
      params: the trainable variables, by path; assigning to one changes the kernel.
      frozen: the other variables that the model reads, by path.
      signatures_to_save: a concrete function for each signature's name.
      reference_features, ntk_of_references: for programs that keep examples: reference_features([x]) is a list of
        tensors (n2, ...), and ntk_of_references([x1], that list) the kernel (n1, n2); only with `references`.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        frozen: Mapping[str, Any],
        inputs: Sequence[TensorSpec],
        functions: Mapping[str, Compute],
        *,
        front: Front | None = None,
        frozen_part: Callable[..., list[tf.Tensor]] | None = None,
        computed_with: Collection[str] | None = None,
        behind: Sequence[TensorSpec] = (),
        references: References | None = None,
    ) -> None:
        """Builds the functions.

        Args:
          params: initial values of the trainable variables, by path.
          frozen: values of the others, by path.
          inputs: the model's inputs.
          functions: for the name of each signature how it is computed.
          front: what makes the functions' sides of the model's inputs; None if they are these.
          frozen_part: or else what makes them, with some of the variables `frozen`.
          computed_with: paths of those of `frozen` that the functions take; None for all.
          behind: what it gives.
          references: how kernels with kept examples are computed, if they can be.
        """
        super().__init__()
        self.params = {path: tf.Variable(value, name=path) for path, value in params.items()}
        self.frozen = {path: tf.Variable(value, name=path, trainable=False) for path, value in frozen.items()}
        self._inputs = [tf.TensorSpec(spec.shape, spec.dtype) for spec in inputs]
        self._frozen_part, self._computed_with = frozen_part, list(frozen if computed_with is None else computed_with)
        self.front, self._behind = front, [tf.TensorSpec(spec.shape, spec.dtype, spec.name) for spec in behind]
        self.signatures_to_save = {}
        for name, compute in functions.items():
            signature = SIGNATURES[name]
            names = [input_names(side, inputs) for side in signature.sides]
            core = self._core(name, compute, [n for side in names for n in side])
            self.signatures_to_save[name] = self._signature(signature, core, names)
            setattr(self, name, self._method(signature, core, [spec.name for spec in inputs], names))
        if references is not None:
            self._keep_references(references, list(input_names("x", inputs)))

    def _keep_references(self, references: References, names: list[str]) -> None:
        features = self._core("reference_features", references.features, names)
        kernel = self._core("ntk_of_references", references.kernel, names)
        x = [tf.TensorSpec(None, s.dtype, n) for n, s in zip(names, self._inputs, strict=True)]
        kept = list(references.specs)
        self.reference_features = tf.function(lambda x: features([_opaque(a) for a in x], {}), [x], autograph=False)
        self.ntk_of_references = tf.function(
            lambda x, kept: kernel([_opaque(a) for a in x], {}, kept), [x, kept], autograph=False
        )

    def _core(self, name: str, compute: Compute, names: list[str]) -> Any:
        """The graph that a signature and its method share: flat inputs of any shape, checked, then computed."""
        specs = self._inputs * (len(names) // len(self._inputs))

        def core(x: list[tf.Tensor], params: dict[str, tf.Tensor], *more: Any) -> Any:
            if not params:
                values = {path: v.read_value() for path, v in self.params.items()}
            else:
                values = {
                    path: _checked(f"{name} {path}", params[path], tf.TensorSpec(v.shape, v.dtype))
                    for path, v in self.params.items()
                }
            x = [_checked(f"{name} {n}", a, spec) for n, a, spec in zip(names, x, specs, strict=True)]
            frozen = {path: v.read_value() for path, v in self.frozen.items()}
            if self.front is None:  # which may take 64-bit integers
                x = [_within_32_bits(f"{name} {n}", a) for n, a in zip(names, x, strict=True)]
            size = len(self._inputs)
            sides = [_same_count(name, names[k : k + size], x[k : k + size]) for k in range(0, len(x), size)]
            sides = [self._behind_front(name, side, frozen) for side in sides]
            return compute(values, {path: frozen[path] for path in self._computed_with}, *sides, *more)

        return traced_once(core)

    def _behind_front(self, name: str, side: list[tf.Tensor], frozen: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """What the functions take of a side, checked: only examples of the export say which shapes the front gives."""
        if self._frozen_part is not None:
            return self._frozen_part(side, frozen)
        if self.front is None:
            return side
        given = [tf.cast(a, spec.dtype) for a, spec in zip(self.front(side), self._behind, strict=True)]
        labels = [f"{name}, preprocessed {spec.name}" for spec in self._behind]
        return [
            _within_32_bits(label, _checked(label, _opaque(a), spec))
            for label, a, spec in zip(labels, given, self._behind, strict=True)
        ]

    def _signature(self, signature: Signature, core: Any, names: list[tuple[str, ...]]) -> Any:
        flat = [n for side in names for n in side]
        keys = param_names(self.params) if signature.takes_params else {}

        def fn(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            params = {path: _opaque(inputs[key]) for path, key in keys.items()}
            return {signature.output: core([_opaque(inputs[n]) for n in flat], params)}

        specs = {n: tf.TensorSpec(s.shape, s.dtype, n) for n, s in zip(flat, self._inputs * len(names), strict=True)}
        specs |= {key: tf.TensorSpec(self.params[p].shape, self.params[p].dtype, key) for p, key in keys.items()}
        return tf.function(fn, autograph=False).get_concrete_function(**specs)

    def _method(self, signature: Signature, core: Any, model_names: list[str], names: list[tuple[str, ...]]) -> Any:
        """For Python: a side is a tensor, or for several inputs a list, a tuple or a dict by the model's names."""

        def side(value: Any) -> list[tf.Tensor]:
            if isinstance(value, Mapping):
                return [_opaque(value[n]) for n in model_names]
            return [_opaque(v) for v in value] if isinstance(value, list | tuple) else [_opaque(value)]

        def with_params(x1: Any, x2: Any, params: Any) -> tf.Tensor:
            return core(side(x1) + side(x2), {path: _opaque(v) for path, v in params.items()})

        def of_two(x1: Any, x2: Any) -> tf.Tensor:
            return core(side(x1) + side(x2), {})

        def of_one(x: Any) -> tf.Tensor:
            return core(side(x), {})

        method = with_params if signature.takes_params else of_two if len(signature.sides) == 2 else of_one
        params = [{path: tf.TensorSpec(None, v.dtype) for path, v in self.params.items()}] * signature.takes_params
        specs = [[tf.TensorSpec(None, s.dtype, n) for s, n in zip(self._inputs, side, strict=True)] for side in names]
        if len(model_names) == 1:
            # One trace for all shapes: without a signature TF traces, and keeps, a graph for each shape it meets.
            return tf.function(method, [*(spec for (spec,) in specs), *params], autograph=False)
        function = tf.function(method, autograph=False)
        for kind in (list, tuple, lambda side: dict(zip(model_names, side, strict=True))):
            function.get_concrete_function(*map(kind, specs), *params)
        return function


def _checked(name: str, value: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """`value`, with an assertion in the graph that it has the shape of `spec`, and this shape known."""
    dims = ["n" if d is None else str(d) for d in spec.shape]
    expected = f"{name}: expected {spec.dtype.name} ({', '.join(dims)}{',' if len(dims) == 1 else ''}), received"
    shape = tf.shape(value)
    sizes = tf.constant([-1 if d is None else d for d in spec.shape], tf.int32)
    rank = len(dims)
    padded = tf.concat([shape, tf.fill([rank], -1)], 0)[:rank]  # comparable whatever the rank is
    fits = tf.reduce_all(tf.equal(padded, sizes) | tf.less(sizes, 0)) & tf.equal(tf.size(shape), rank)
    if dims.count("n") > 1:
        sizes = tf.where(sizes < 0, tf.ensure_shape(padded, [rank]), sizes)
    with tf.control_dependencies([_assert(fits, expected, shape)]):
        # Not ensure_shape: from that graph optimizers conclude what shape `value` has, and drop the assertion.
        return tf.reshape(value, sizes)


def _within_32_bits(name: str, value: tf.Tensor) -> tf.Tensor:
    """`value`, if it is of 64-bit integers with an assertion that 32 hold them: XLA's programs have those, as JAX."""
    narrow = {tf.int64: tf.int32, tf.uint64: tf.uint32}.get(value.dtype)
    if narrow is None:
        return value
    inside = tf.reduce_all((value >= narrow.min) & (value <= narrow.max))
    bounds = f"{name}: expected {value.dtype.name} between {narrow.min} and {narrow.max}, received from, to"
    with tf.control_dependencies([_assert(inside, bounds, tf.stack([tf.reduce_min(value), tf.reduce_max(value)]))]):
        return tf.identity(value)


def _same_count(name: str, names: Sequence[str], side: list[tf.Tensor]) -> list[tf.Tensor]:
    """The inputs of one side, with an assertion that they hold equally many examples."""
    if len(side) == 1:
        return side
    counts = tf.stack([tf.shape(a)[0] for a in side])
    message = f"{name}: expected as many examples in each of {', '.join(names)}, received"
    with tf.control_dependencies([_assert(tf.reduce_all(tf.equal(counts, counts[0])), message, counts)]):
        return [tf.identity(a) for a in side]


def _assert(condition: Any, message: str, numbers: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(condition, [message, numbers], summarize=16)  # by default it shows 3 numbers


def _opaque(value: tf.Tensor) -> tf.Tensor:
    """`value` with its static shape forgotten, so that no graph optimizer drops a check that it thinks decided."""
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=tf.TensorShape(None))
