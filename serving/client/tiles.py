"""How a request that is too large for one message is split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from serving.client.errors import ServingError

# A tile: the examples of x1 (rows) and those of x2 (columns).
Tile = tuple[slice, slice]


def pair_tiles(n1: int, n2: int, *, example: int, entry: int, limit: int, shared: int = 0) -> list[Tile]:
    """The kernel of n1 by n2 examples as requests and answers of at most `limit` bytes each.

    A server computes the features of each example of a tile, so a split is good that has few examples in all its tiles
    together; of those that fit, the best is taken.

    Args:
      n1: examples of x1, at least 1.
      n2: examples of x2, at least 1.
      example: bytes of one example.
      entry: bytes of the result for one pair.
      limit: bytes of a message.
      shared: bytes of the parameters, which each request carries.

    Raises:
      ServingError: not even one pair fits.
    """
    if shared + 2 * example > limit or entry > limit:
        raise _too_small(max(shared + 2 * example, entry), limit, " with its parameters" if shared else "")
    best: tuple[int, int, int] | None = None
    for parts2 in _counts(n2):
        columns = math.ceil(n2 / parts2)
        most = min((limit - shared - columns * example) // example, limit // (columns * entry))
        if most < 1:
            continue
        parts1 = math.ceil(n1 / most)
        cost = parts2 * n1 + parts1 * n2  # examples in all tiles together
        if best is None or cost < best[0]:
            best = cost, parts1, parts2
    assert best is not None  # one column at a time fits
    return list(itertools.product(_strips(n1, best[1]), _strips(n2, best[2])))


def symmetric_tiles(n: int, *, example: int, entry: int, limit: int) -> list[Tile]:
    """The tiles on and above the diagonal of the kernel of n examples with themselves, by the same strips both ways.

    Raises:
      ServingError: not even one pair fits.
    """
    size = min(limit // (2 * example), math.isqrt(limit // entry))
    if size < 1:
        raise _too_small(max(2 * example, entry), limit)
    if n * example <= limit and n * n * entry <= limit:
        size = n  # one request carries the examples once
    strips = list(_strips(n, math.ceil(n / size)))
    return [(rows, columns) for i, rows in enumerate(strips) for columns in strips[i:]]


def row_tiles(n: int, *, example: int, entry: int, limit: int, most: int | None = None) -> list[slice]:
    """n examples, of which each has a result of its own of `entry` bytes; no more than `most` together.

    Raises:
      ServingError: not even one fits.
    """
    size = limit // max(example, entry)
    if size < 1:
        raise _too_small(max(example, entry), limit)
    return list(_strips(n, math.ceil(n / min(size, most or size))))


def _counts(n: int) -> Iterator[int]:
    """Numbers of strips to try: 1, 2, 3, ... and from 64 on every 1/16 more, up to n."""
    count = 1
    while count < n:
        yield count
        count += max(1, count // 16) if count >= 64 else 1
    yield n


def _strips(n: int, parts: int) -> Iterator[slice]:
    """0...n in that many parts, whose sizes differ by one at most."""
    edges = [n * k // parts for k in range(parts + 1)]
    yield from (slice(a, b) for a, b in itertools.pairwise(edges))


def _too_small(needed: int, limit: int, more: str = "") -> ServingError:
    return ServingError(
        f"The message limit is too small: expected at least {needed:,} bytes for one pair of examples{more}, received "
        f"message_limit={limit:,}. Raise it.",
        "INVALID_ARGUMENT",
    )
