"""The random projection that features are made by: which sign and which of the D numbers each entry of a Jacobian has.

A count sketch (Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206): every entry is added, with
a random sign, to one of D numbers, so that products of features are those of the Jacobians on average.
`docs/features.md` defines signs and places exactly, on a variable's path and shape, by Threefry-2x32 (Salmon et al.
2011, https://doi.org/10.1145/2063384.2063405) as a function of counters: nothing of the projection is stored.

An entry's place is that in its row of D entries, shifted cyclically by an amount of the row and one of the output. So
entries of a row never meet, nor does an entry of one output that of another, and all others do with probability 1/D.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

VERSION = 1  # of the definition
BITS = 32  # signs in a word

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
TURNS = 5  # of four rounds


def threefry(key: Sequence[np.ndarray], counter: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds, of arrays of uint32."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    with np.errstate(over="ignore"):
        x, y = counter[0] + keys[0], counter[1] + keys[1]
        for turn in range(TURNS):
            for rotation in ROTATIONS[turn % 2]:
                x = x + y
                y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
            x, y = x + keys[(turn + 1) % 3], y + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return x, y


@dataclasses.dataclass(frozen=True)
class Sketch:
    """A projection to D numbers.

    Attributes:
      dimensions: D.
      seed: of its signs and shifts.
    """

    dimensions: int
    seed: int = 0

    def keys(self, path: str, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The keys of a variable's signs, of its rows' shifts, and of its rows' signs for each output."""
        return self._keys(path, ",".join(map(str, shape)))

    def rows(self, shape: Sequence[int]) -> int:
        """How many rows of D entries a variable has."""
        return -(-math.prod(shape) // self.dimensions)

    @property
    def words(self) -> int:
        """How many words hold the signs of a row."""
        return 2 * -(-self.dimensions // (2 * BITS))

    @functools.cached_property
    def output_shifts(self) -> np.ndarray:
        """The shift (D,) of each output, by its number modulo D: a random order of 0 to D - 1."""
        key = _uint32(self._keys()[0])
        drawn, _ = threefry(key, (np.arange(self.dimensions, dtype=np.uint32), np.zeros(1, np.uint32)))
        return np.argsort(drawn, kind="stable")

    def project(self, jacobians: Mapping[str, np.ndarray]) -> np.ndarray:
        """Features (n, D) of Jacobians (n, C, *shape) of each variable, by path, of C traced outputs.

        In NumPy and float64: what exports are verified with.
        """
        total = np.zeros((len(next(iter(jacobians.values()))), self.dimensions))
        for path, values in jacobians.items():
            count, *shape = values.shape[1:]
            for output in range(count):
                self.add(total, path, shape, output, values[:, output].reshape(len(values), -1), count)
        return total

    def add(
        self, total: np.ndarray, path: str, shape: Sequence[int], output: int, gradients: np.ndarray, count: int
    ) -> None:
        """Adds to `total` (n, D) what gradients (n, size) of one output, of `count` traced ones, are of features."""
        signs, shifts = self.of_variable(path, shape, output)
        for turned, gradient in zip(total, gradients, strict=True):
            rows = np.zeros(signs.shape)
            np.divide(gradient, math.sqrt(count), out=rows.reshape(-1)[: gradient.size])
            rows *= signs
            for row, shift in zip(rows, shifts, strict=True):
                turned[shift:] += row[: len(row) - shift]
                turned[:shift] += row[len(row) - shift :]

    def of_variable(self, path: str, shape: Sequence[int], output: int) -> tuple[np.ndarray, np.ndarray]:
        """The signs (rows, D), 1 or -1, of a variable's rows for one output, and the rows' shifts (rows,)."""
        signs, shifts, output_signs = map(_uint32, self.keys(path, shape))
        group = np.full(1, output // self.dimensions, np.uint32)
        rows = np.arange(self.rows(shape), dtype=np.uint32)
        blocks = np.arange(len(rows) * self.words // 2, dtype=np.uint32)
        words = np.stack(threefry(signs, (blocks, group)), -1).reshape(len(rows), self.words)
        pair = threefry(output_signs, (rows, np.full(1, output // (2 * BITS), np.uint32)))
        words ^= -(pair[output // BITS % 2] >> np.uint32(output % BITS) & np.uint32(1))[:, None]  # all bits of a word
        bits = np.unpackbits(words.astype("<u4").view(np.uint8), axis=-1, bitorder="little")
        shift = threefry(shifts, (rows, group))[0] % np.uint32(self.dimensions)
        offset = self.output_shifts[output % self.dimensions]
        return 1 - 2 * bits[:, : self.dimensions].astype(np.int8), (shift + offset) % self.dimensions

    def _keys(self, *of: str) -> tuple[tuple[int, int], ...]:
        text = "\n".join((f"ntk_features {VERSION}", str(self.seed), *of))
        words = np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u4")
        return tuple((int(words[k]), int(words[k + 1])) for k in (0, 2, 4))


def _uint32(key: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.full(1, key[0], np.uint32), np.full(1, key[1], np.uint32)
