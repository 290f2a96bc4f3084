"""How calls are split: everything once, nothing too large, and not into more than is needed."""

import itertools

import numpy as np
import pytest

from serving.client.errors import ServingError
from serving.client.tiles import pair_tiles, row_tiles, symmetric_tiles


def cases(count):
    """Random sizes, limits from too small to large enough for all: n1, n2, {example, entry, limit}."""
    random = np.random.default_rng(0)
    for _ in range(count):
        n1, n2, example, entry = (int(n) for n in random.integers(1, 71, 4))
        yield n1, n2, {"example": example, "entry": entry, "limit": int(10 ** random.uniform(0.5, 4))}


def too_small(sizes):
    return 2 * sizes["example"] > sizes["limit"] or sizes["entry"] > sizes["limit"]


def test_cases_are_of_all_kinds():
    seen = {(too_small(s), not too_small(s) and len(pair_tiles(n1, n2, **s)) > 1) for n1, n2, s in cases(500)}
    assert seen == {(True, False), (False, True), (False, False)}


def test_pairs():
    for n1, n2, sizes in cases(500):
        if too_small(sizes):
            with pytest.raises(ServingError, match="message limit is too small"):
                pair_tiles(n1, n2, **sizes)
            continue
        times = np.zeros((n1, n2), int)
        for rows, columns in pair_tiles(n1, n2, **sizes):
            times[rows, columns] += 1
            part = times[rows, columns].shape
            assert min(part) > 0
            assert sum(part) * sizes["example"] <= sizes["limit"]
            assert part[0] * part[1] * sizes["entry"] <= sizes["limit"]
        assert np.all(times == 1)


def test_symmetric():
    for n, _, sizes in cases(500):
        if too_small(sizes):
            with pytest.raises(ServingError, match="message limit is too small"):
                symmetric_tiles(n, **sizes)
            continue
        times = np.zeros((n, n), int)
        for rows, columns in symmetric_tiles(n, **sizes):
            part = times[rows, columns].shape
            assert part[0] * part[1] * sizes["entry"] <= sizes["limit"]
            assert (part[0] if rows == columns else sum(part)) * sizes["example"] <= sizes["limit"]
            times[rows, columns] += 1
            if rows != columns:
                times[columns, rows] += 1
        assert np.all(times == 1)


def test_rows():
    for n, most, sizes in cases(500):
        if max(sizes["example"], sizes["entry"]) > sizes["limit"]:
            with pytest.raises(ServingError, match="message limit is too small"):
                row_tiles(n, **sizes)
            continue
        for strips in (row_tiles(n, **sizes), row_tiles(n, **sizes, most=most)):
            assert [k for strip in strips for k in range(strip.start, strip.stop)] == list(range(n))
            assert all((s.stop - s.start) * max(sizes["example"], sizes["entry"]) <= sizes["limit"] for s in strips)
        assert all(s.stop - s.start <= most for s in strips)


def test_what_fits_is_one_request():
    assert pair_tiles(10, 20, example=4, entry=1, limit=200) == [(slice(0, 10), slice(0, 20))]
    assert symmetric_tiles(14, example=10, entry=1, limit=200) == [(slice(0, 14), slice(0, 14))]
    assert row_tiles(20, example=10, entry=1, limit=200) == [slice(0, 20)]


def test_the_split_has_few_examples_in_its_tiles():
    """Long strips if x2 is short, squares if both are long: each example of a tile costs its features."""
    tiles = pair_tiles(1000, 5, example=1, entry=1, limit=100)
    assert all(columns == slice(0, 5) for _, columns in tiles)
    examples = sum(
        (rows.stop - rows.start) + (columns.stop - columns.start)
        for rows, columns in pair_tiles(1000, 1000, example=1, entry=1, limit=10_000)
    )
    squares = 2 * 1000 * 10  # 10 × 10 tiles of 100 × 100
    assert examples <= squares


def test_the_message_says_how_large_the_limit_must_be():
    with pytest.raises(ServingError, match=r"at least 300 bytes for one pair of examples, received message_limit=200"):
        pair_tiles(3, 3, example=150, entry=1, limit=200)


def test_strips_differ_by_one_at_most():
    strips = row_tiles(103, example=1, entry=1, limit=25)
    lengths = {s.stop - s.start for s in strips}
    assert len(strips) == 5
    assert lengths == {20, 21}
    assert all(a.stop == b.start for a, b in itertools.pairwise(strips))
