"""Calls of a kernel as the requests that they are made of. Pure: nothing is sent here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serving.client import tensors
from serving.client.arguments import count, part
from serving.client.model import SignatureSpec, TensorSpec
from serving.client.tiles import Tile, pair_tiles, row_tiles, symmetric_tiles

Inputs = Mapping[str, np.ndarray]
_TEXT = 64  # bytes of a text that is answered


@dataclasses.dataclass(frozen=True)
class Request:
    """One request of a call.

    Attributes:
      signature: to call.
      inputs: views of the caller's arrays.
      place: where the answer belongs in the result.
      mirrored: where its transpose belongs too, if anywhere.
    """

    signature: str
    inputs: Inputs
    place: tuple[slice, ...]
    mirrored: tuple[slice, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Call:
    """The requests of a call, and what they fill.

    Attributes:
      title: what to call it.
      results: shape and dtype of each, by the outputs' names.
      requests: that fill them.
      swap: the permutation of axes that makes what is mirrored.
    """

    title: str
    results: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    requests: Sequence[Request]
    swap: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What fits one message: its bytes, and those that a number of some dtype or a text of some length takes in it."""

    message: int
    encoded_size: Callable[[np.dtype, int], int]

    def of(self, signature: SignatureSpec, sides: int, *inputs: Inputs) -> dict[str, int]:
        """The sizes that `serving.client.tiles` asks for; the larger example if there are two sides."""
        return {
            "example": max(sum(self._example(a) for a in side.values()) for side in inputs) or 1,
            "entry": sum(self._entry(output, sides) for output in signature.outputs.values()) or 1,
            "limit": self.message,
        }

    def _entry(self, output: TensorSpec, sides: int) -> int:
        """What an output takes for each example, or pair of them; of texts a short one."""
        kept, dtype = math.prod(d or 1 for d in (output.shape or ())[sides:]), tensors.numpy_dtype(output.dtype)
        return kept * self.encoded_size(dtype, _TEXT if dtype.hasobject else 0)

    def bytes(self, array: np.ndarray) -> int:
        """What all of it takes."""
        return array.size * self.encoded_size(array.dtype, 0)

    def _example(self, array: np.ndarray) -> int:
        """What the largest example takes."""
        if array.dtype.kind != "O":
            return math.prod(array.shape[1:]) * self.encoded_size(array.dtype, 0)
        rows = array.reshape(len(array), math.prod(array.shape[1:]))
        sizes = (sum(self.encoded_size(array.dtype, tensors.text_size(t)) for t in texts) for texts in rows)
        return max(sizes, default=0)


def pairs(signature: SignatureSpec, x1: Inputs, x2: Inputs, limits: Limits, params: Inputs | None = None) -> Call:
    """The kernel of x1 (inputs x1 or x1_<name>) and x2, at `params` if given, which are sent with each request."""
    name, params = ("ntk", {}) if params is None else ("ntk_with_params", params)
    n1, n2 = count(x1), count(x2)
    shared = sum(limits.bytes(array) for array in params.values())
    tiles = pair_tiles(n1, n2, **limits.of(signature, 2, x1, x2), shared=shared) if n1 and n2 else []
    requests = [Request(name, {**part(x1, rows), **part(x2, cols), **params}, (rows, cols)) for rows, cols in tiles]
    return _call(f"kernel {n1} × {n2}", signature, (n1, n2), requests)


def symmetric(signature: SignatureSpec, x: Inputs, limits: Limits) -> Call | None:
    """The kernel of x with itself as one request; None if it takes several."""
    n = count(x)
    tiles = symmetric_tiles(n, **limits.of(signature, 2, x)) if n else []
    if len(tiles) > 1:
        return None
    return _call(f"kernel {n} × {n}", signature, (n, n), [Request("ntk_symmetric", x, t) for t in tiles])


def symmetric_split(signature: SignatureSpec, x: Inputs, swap: tuple[int, ...] | None, limits: Limits) -> Call:
    """The same as several requests: of the tiles off the diagonal only one half, if `swap` makes the other of it.

    Without `swap` it is not known which kept axes belong to which side, and the other half is asked for too.
    """
    n = count(x)

    def request(tile: Tile, mirrored: bool) -> Request:
        rows, columns = tile
        if rows == columns:
            return Request("ntk_symmetric", part(x, rows), tile)
        inputs = {**_sided(part(x, rows), "x1"), **_sided(part(x, columns), "x2")}
        return Request("ntk", inputs, tile, (columns, rows) if mirrored else None)

    tiles = symmetric_tiles(n, **limits.of(signature, 2, x))
    requests = [request(tile, swap is not None) for tile in tiles]
    if swap is None:
        requests += [request((columns, rows), False) for rows, columns in tiles if rows != columns]
    return dataclasses.replace(_call(f"kernel {n} × {n}", signature, (n, n), requests), swap=swap)


def rowwise(name: str, signature: SignatureSpec, x: Inputs, limits: Limits, most: int | None = None) -> Call:
    """A signature whose results have a row for each example, with at most `most` of them in a request."""
    n = count(x)
    strips = row_tiles(n, **limits.of(signature, 1, x), most=most) if n else []
    requests = [Request(name, part(x, rows), (rows,)) for rows in strips]
    return _call(f"{name.removeprefix('ntk_')} of {n}", signature, (n,), requests)


def _sided(inputs: Inputs, side: str) -> dict[str, np.ndarray]:
    return {side + name.removeprefix("x"): array for name, array in inputs.items()}


def _call(title: str, signature: SignatureSpec, counts: tuple[int, ...], requests: Sequence[Request]) -> Call:
    def result(output: TensorSpec) -> tuple[tuple[int, ...], np.dtype]:
        kept = (d or 0 for d in (output.shape or ())[len(counts) :])
        return (*counts, *kept), tensors.numpy_dtype(output.dtype)

    return Call(title, {name: result(output) for name, output in signature.outputs.items()}, requests)
