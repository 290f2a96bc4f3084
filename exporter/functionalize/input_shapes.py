"""Sizes for the axes that a model leaves open: a kernel is computed for inputs of known shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from exporter.errors import ExportError
from serving.shared.suggest import did_you_mean

InputShapes = Sequence[int] | Mapping[str, Sequence[int]]

_KEY = "export.input_shapes"
_EXAMPLE = 32  # a size that most models take, for messages


def fix_sizes(model: str, inputs: Sequence[tf.TensorSpec], shapes: InputShapes | None) -> list[tf.TensorSpec]:
    """The inputs with sizes for their open axes.

    Args:
      model: its name.
      inputs: of known rank, the batch axis first.
      shapes: for each input that has open axes besides the batch axis their sizes, in order; of a model with one input
        also these sizes alone.

    Raises:
      ExportError: a size is missing, or is for something that is not open; all such problems in one message.
    """
    specs = {spec.name: spec for spec in inputs}
    given = _by_name(model, specs, shapes)
    unknown = [name for name in given if name not in specs]
    problems = [_unknown(unknown, model, specs)] if unknown else []
    problems += [
        _wrong_number(specs[name], sizes)
        for name, sizes in given.items()
        if name in specs and len(sizes) != _count_open(specs[name])
    ]
    if problems:
        raise ExportError(f"{_KEY}: {'; '.join(problems)}.")
    # What a model makes of texts may have a known size, whatever theirs is.
    numbers = [spec for spec in inputs if spec.dtype != tf.string]
    if missing := [spec for spec in numbers if _count_open(spec) and spec.name not in given]:
        raise ExportError(
            f"Expected the inputs of {model!r} to have known sizes but for the batch axis, received "
            f"{_described(*missing)}; set {_KEY} to the sizes of the open axes, for instance "
            f"{_example(specs, given)}, or build the model with known sizes."
        )
    return [_with_sizes(spec, given[spec.name]) if spec.name in given else spec for spec in inputs]


def _by_name(model: str, specs: Mapping[str, tf.TensorSpec], shapes: InputShapes | None) -> dict[str, Sequence[int]]:
    """The sizes by input; ExportError if it is not said for which of several they are."""
    if shapes is None:
        return {}
    if isinstance(shapes, Mapping):
        return dict(shapes)
    if len(specs) == 1:
        return dict.fromkeys(specs, shapes)
    fitting = {name: shapes for name, spec in specs.items() if _count_open(spec) == len(shapes)}
    example = f", for instance {_example(specs, fitting)}" if any(map(_count_open, specs.values())) else ""
    raise ExportError(
        f"{_KEY}: expected sizes by the names of inputs, since {model!r} has {len(specs)} ({', '.join(specs)}), "
        f"received {list(shapes)}; write them by name{example}."
    )


def _unknown(names: Sequence[str], model: str, known: Mapping[str, tf.TensorSpec]) -> str:
    hints = [did_you_mean(name, known).removeprefix("; ") for name in names]
    received = ", ".join(f"{name!r}" + f" ({hint})" * bool(hint) for name, hint in zip(names, hints, strict=True))
    return f"expected names of inputs of {model!r} ({', '.join(known)}), received {received}"


def _wrong_number(spec: tf.TensorSpec, sizes: Sequence[int]) -> str:
    expected, received = _count_open(spec), f"received {list(sizes)}"
    if not expected:
        cure = "leave it out, or build the model with None there"
        return f"input {_described(spec)} has no open axis but the batch axis, {received} for it; {cure}"
    what = "1 size" if expected == 1 else f"{expected} sizes"
    return f"expected {what}, one for each open axis of input {_described(spec)} but the batch axis, {received}"


def _example(specs: Mapping[str, tf.TensorSpec], given: Mapping[str, Sequence[int]]) -> str:
    """What a configuration could say: the sizes that are given, and examples for the others."""
    sizes = {
        name: list(given.get(name, [_EXAMPLE] * _count_open(spec))) for name, spec in specs.items() if _count_open(spec)
    }
    if len(specs) == 1:
        return f"{_KEY}: {next(iter(sizes.values()))}"
    return f"{_KEY}: {{{', '.join(f'{name}: {value}' for name, value in sizes.items())}}}"


def _described(*specs: tf.TensorSpec) -> str:
    return ", ".join(f"{spec.name!r} of shape {tuple(spec.shape.as_list())}" for spec in specs)


def _count_open(spec: tf.TensorSpec) -> int:
    """The number of axes that are open besides the batch axis."""
    return spec.shape.as_list()[1:].count(None)


def _with_sizes(spec: tf.TensorSpec, sizes: Sequence[int]) -> tf.TensorSpec:
    remaining = iter(sizes)
    batch, *others = spec.shape.as_list()
    shape = [batch, *(next(remaining) if size is None else size for size in others)]
    return tf.TensorSpec(shape, spec.dtype, spec.name)
