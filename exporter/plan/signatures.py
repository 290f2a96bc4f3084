"""The named functions of a SavedModel: what each takes and returns, and under which names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from exporter.functionalize import TensorSpec


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a signature takes and returns.

    Attributes:
      sides: the batches of examples it takes: x1 and x2, or x.
      output: the name of its one output.
      takes_params: whether the trainable variables are inputs too.
    """

    sides: tuple[str, ...]
    output: str
    takes_params: bool = False


SIGNATURES: Mapping[str, Signature] = {
    "ntk": Signature(("x1", "x2"), "ntk"),
    "ntk_symmetric": Signature(("x",), "ntk"),
    "ntk_diagonal": Signature(("x",), "ntk"),
    "ntk_with_params": Signature(("x1", "x2"), "ntk", takes_params=True),
    "ntk_features": Signature(("x",), "features"),
    "forward": Signature(("x",), "output"),
}


def input_names(side: str, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names of a side's inputs: the side itself, or for a model with several inputs one name each."""
    return (side,) if len(inputs) == 1 else _unique(f"{side}_{_letters_and_digits(spec.name)}" for spec in inputs)


def param_names(paths: Iterable[str]) -> dict[str, str]:
    """The input of `ntk_with_params` for each variable path: `params_` and the path in letters, digits and `_`."""
    paths = list(paths)
    return dict(zip(paths, _unique(f"params_{_letters_and_digits(path)}" for path in paths), strict=True))


def _letters_and_digits(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "_", text)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    """The names, with _2, _3, ... after those that stand before already; none of these is another name of the list."""
    names = list(names)
    result: list[str] = []
    for name in names:
        unique, count = name, 1
        while unique in result or (count > 1 and unique in names):
            count += 1
            unique = f"{name}_{count}"
        result.append(unique)
    return tuple(result)
