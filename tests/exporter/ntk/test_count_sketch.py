import pathlib
import re

import numpy as np
import pytest

from exporter.ntk.count_sketch import Sketch, threefry

PAGE = pathlib.Path(__file__).parents[3] / "docs/features.md"
SHAPES = {"dense/kernel": (5, 7), "dense/bias": (7,), "scale": (), "empty": (0, 3), "conv/kernel": (3, 2, 4, 5)}


def jacobians(count):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=(2, count, *shape)) for path, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_has_the_known_answers_of_random123(key, counter, expected):
    received = threefry(*([np.full(1, word, np.uint32) for word in pair] for pair in (key, counter)))
    assert tuple(int(word[0]) for word in received) == expected


@pytest.mark.parametrize(("dimensions", "count"), [(64, 3), (100, 70), (7, 3), (4, 10), (1, 2), (512, 1)])
def test_the_page_defines_it(dimensions, count):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code, names)
    both = jacobians(count)
    received = Sketch(dimensions, seed=5).project(both)
    expected = [names["features"]({path: j[n] for path, j in both.items()}, dimensions, 5) for n in range(2)]
    np.testing.assert_allclose(received, expected, atol=1e-12 * np.max(np.abs(expected)))


@pytest.mark.parametrize(
    ("dimensions", "count", "size", "noise"),
    [
        (32, 3, 200, 1.0),
        (32, 5, 24, 0.1),  # all entries of an output in one row
        (32, 5, 128, 0.1),
        (8, 12, 24, 0.1),  # more outputs than dimensions
    ],
)
def test_products_are_unbiased_and_vary_as_promised(dimensions, count, size, noise):
    """Of Jacobians whose outputs may be almost equal, with entries that are those of few channels, again and again."""
    rng = np.random.default_rng(3)
    flat = np.tile(rng.normal(size=8), size // 8) * (noise < 1) + noise * rng.normal(size=(6, count, size))
    exact = np.einsum("ncp,mcp->nm", flat, flat) / count
    features = np.stack([Sketch(dimensions, seed).project({"w": flat}) for seed in range(200)])
    products = np.einsum("snd,smd->snm", features, features)
    bound = (np.outer(np.diag(exact), np.diag(exact)) + exact**2) / dimensions
    assert np.all(np.abs(products.mean(0) - exact) <= 4 * np.sqrt(bound / len(products)))
    assert np.mean(products.var(0) / bound) <= 1.1


def test_features_of_other_seeds_variables_and_outputs_differ():
    sketch, (path, shape) = Sketch(64), ("kernel", (20, 30))
    signs, shifts = sketch.of_variable(path, shape, 0)
    for other in (Sketch(64, 1).of_variable(path, shape, 0), sketch.of_variable("bias", shape, 0)):
        assert np.mean(signs == other[0]) == pytest.approx(0.5, abs=0.1)
        assert np.mean(shifts == other[1]) < 0.1
    assert not np.any(shifts == sketch.of_variable(path, shape, 1)[1])
