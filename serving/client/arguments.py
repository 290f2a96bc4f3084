"""What users pass to the client, as the inputs of a signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.client import tensors
from serving.client.errors import ServingError
from serving.client.model import SignatureSpec, TensorSpec


def side_inputs(
    side: str, value: Any, signature: SignatureSpec, names: Mapping[str, str] | None
) -> dict[str, np.ndarray]:
    """A batch of examples as the inputs of a signature, checked against it.

    Args:
      side: x1, x2 or x.
      value: an array of all examples; for a model with several inputs a dict by input, or a sequence in their order.
      signature: that takes them.
      names: for the name of each of the model's inputs, in its order, that of the signature's for the side x; None if
        it is not known.

    Raises:
      ServingError: they do not fit, with all that is wrong.
    """
    specs = signature.side(side)
    arrays: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for name, given in _by_input(side, value, specs, names).items():
        try:
            arrays[name] = _as_array(given, specs[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        problems.append(f"expected as many examples in each of {', '.join(counts)}, received {[*counts.values()]}")
    if problems:
        raise _wrong("; ".join(problems))
    return arrays


def param_inputs(
    params: Mapping[str, Any], signature: SignatureSpec, names: Mapping[str, str] | None
) -> dict[str, np.ndarray]:
    """Trainable variables as the inputs of `ntk_with_params`, checked against it.

    Args:
      params: an array for each variable's path.
      signature: that takes them.
      names: for each variable's path the signature's name for it; None if it is not known.

    Raises:
      ServingError: they do not fit, with all that is wrong.
    """
    if names is None:
        raise _wrong("params: the paths of the variables are not known, for the server does not tell its manifest")
    problems = [f"no {path}" for path in names if path not in params]
    arrays: dict[str, np.ndarray] = {}
    for path, value in params.items():
        if path not in names:
            problems.append(f"no variable {path!r} is trainable")
            continue
        try:
            arrays[names[path]] = _as_array(value, signature.inputs[names[path]])
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise _wrong(f"params: expected an array for each of {', '.join(names)}; {'; '.join(problems)}")
    return arrays


def named_inputs(inputs: Mapping[str, Any], signature: SignatureSpec) -> dict[str, np.ndarray]:
    """Arrays by the signature's own names for its inputs, checked against it.

    Raises:
      ServingError: they do not fit, with all that is wrong.
    """
    problems = [f"no {name}" for name in signature.inputs if name not in inputs]
    arrays: dict[str, np.ndarray] = {}
    for name, value in inputs.items():
        if name not in signature.inputs:
            problems.append(f"no input is named {name!r}")
            continue
        try:
            arrays[name] = _as_array(value, signature.inputs[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise _wrong(f"inputs: expected an array for each of {', '.join(signature.inputs)}; {'; '.join(problems)}")
    return arrays


def part(inputs: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """Some of the examples."""
    return {name: array[rows] for name, array in inputs.items()}


def count(inputs: Mapping[str, np.ndarray]) -> int:
    """The number of examples."""
    return len(next(iter(inputs.values())))


def _by_input(
    side: str, value: Any, specs: Mapping[str, TensorSpec], names: Mapping[str, str] | None
) -> dict[str, Any]:
    """The values by the signature's names for them."""
    if not specs:
        raise _wrong(f"{side}: the signature takes no such input")
    if side in specs:
        if isinstance(value, Mapping):
            if len(value) != 1:
                raise _wrong(f"{side}: expected one array, received a dict with {', '.join(map(str, value)) or 'none'}")
            (value,) = value.values()
        return {side: value}
    known = {name: f"{side}{key.removeprefix('x')}" for name, key in (names or {}).items()}
    known = known or {name.removeprefix(f"{side}_"): name for name in specs}
    if isinstance(value, tuple | list):
        if names is None:
            raise _wrong(f"{side}: the order of the inputs is not known; expected a dict with {', '.join(known)}")
        if len(value) != len(known):
            raise _wrong(f"{side}: expected {len(known)} arrays ({', '.join(known)}), received {len(value)}")
        value = dict(zip(known, value, strict=True))
    if not isinstance(value, Mapping):
        raise _wrong(f"{side}: expected a dict or a tuple with {', '.join(known)}, received {type(value).__name__}")
    if set(value) != set(known):
        raise _wrong(
            f"{side}: expected a dict with {', '.join(known)}, received {', '.join(map(str, value)) or 'none'}"
        )
    return {known[name]: v for name, v in value.items()}


def _as_array(value: Any, spec: TensorSpec) -> np.ndarray:
    """An array of the input's shape and dtype; numbers of the same kind are converted where no value changes kind.

    Raises:
      ValueError: it does not fit.
    """
    dtype = tensors.numpy_dtype(spec.dtype)
    array = np.asarray(value, object if dtype.kind == "O" else None)
    if dtype.kind == "O" and not all(isinstance(text, str | bytes) for text in array.flat):
        raise ValueError(f"expected {spec}, received values that are no texts")
    if array.dtype != dtype:
        converted = array.astype(dtype) if np.can_cast(array.dtype, dtype, "same_kind") else None
        overflows = converted is not None and dtype.kind in "iu" and not np.array_equal(converted, array)
        if converted is None or overflows:
            raise ValueError(f"expected {spec}, received {array.dtype}{' values that it cannot hold' * overflows}")
        array = converted
    if spec.shape is not None and not fits(array.shape, spec.shape):
        raise ValueError(f"expected {spec}, received {array.dtype} {array.shape}")
    if array.ndim == 0 and spec.shape != ():
        raise ValueError(f"expected {spec}, received a single number")
    return np.asarray(array, order="C")


def fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Whether a shape is one of those; None stands for any size."""
    return len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))


def _wrong(message: str) -> ServingError:
    return ServingError(message, "INVALID_ARGUMENT")
