import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_engine import LayerwiseParts
from explicit_kernels import contracted

from exporter.config import IMPLEMENTATIONS as CONFIGURABLE
from exporter.ntk.kernel import Undivided, coupled_diagonal_fn, diagonal_fn, kernel_fn, swap_permutation
from exporter.ntk.reference import reference_ntk

IMPLEMENTATIONS = [name for name in CONFIGURABLE if name != "auto"]
TRAINABLE = {
    "conv": np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32) / 2,
    "dense": np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32) / 2,
}
FROZEN = {"mean": np.float32([0.1, -0.2, 0.3, 0.0])}
AXES = [((-1,), ()), ((), ()), ((1,), (2,)), ((), (-2,)), ((1, -1), ())]
each_axes = pytest.mark.parametrize(("trace", "diagonal"), AXES)


def apply_fn(trainable, frozen, inputs):
    """A convolution, a normalisation and a dense layer at each position: outputs (n, 5, 3)."""
    (x,) = inputs
    y = jax.lax.conv_general_dilated(x, trainable["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return jnp.tanh(y - frozen["mean"]) @ trainable["dense"]


def coupled_apply_fn(trainable, frozen, inputs):
    y = apply_fn(trainable, frozen, inputs)
    return y / jnp.sqrt(1 + jnp.mean(y * y, axis=0))


def examples(n, seed=0):
    return (np.random.default_rng(seed).standard_normal((n, 5, 2)).astype(np.float32),)


def assert_close(kernel, expected, rtol=1e-5):
    assert kernel.shape == expected.shape
    assert np.max(np.abs(kernel - expected)) <= rtol * np.max(np.abs(expected))


X1, X2 = examples(4), examples(3, seed=1)


@functools.cache
def explicit(fn, *sides):
    """The kernel of all pairs of outputs, of examples X1 and X2 for the sides "1" and "2"."""
    x = ({"1": X1, "2": X2}[side] for side in sides)
    return reference_ntk(fn, TRAINABLE, FROZEN, *x, trace_axes=(), coupled=fn is coupled_apply_fn)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("fn", [apply_fn, coupled_apply_fn])
def test_implementations_agree(implementation, fn):
    axes = {"trace_axes": (2,), "diagonal_axes": ()}
    kernel = jax.jit(kernel_fn(fn, implementation=implementation, coupled=fn is coupled_apply_fn, **axes))
    assert_close(kernel(TRAINABLE, FROZEN, X1, X2), contracted(explicit(fn, "1", "2"), **axes))


def test_frozen_variables_change_the_kernel_and_have_no_part_in_the_jacobian():
    kernel = jax.jit(kernel_fn(apply_fn, implementation="structured_derivatives", trace_axes=(-1,), diagonal_axes=()))
    moved = {"mean": FROZEN["mean"] + np.float32(0.5)}
    results = [kernel(TRAINABLE, frozen, examples(3), examples(3)) for frozen in (FROZEN, moved)]
    assert_close(results[1], reference_ntk(apply_fn, TRAINABLE, moved, examples(3)))
    assert np.max(np.abs(results[1] - results[0])) > 0.01 * np.max(np.abs(results[0]))


@each_axes
@pytest.mark.parametrize("divided", [True, False])
def test_parts_make_the_kernel_and_its_diagonal(divided, trace, diagonal):
    axes = {"trace_axes": trace, "diagonal_axes": diagonal}
    if divided:
        parts = LayerwiseParts(apply_fn, TRAINABLE, FROZEN, examples(1), counts=(4, 4), **axes)
    else:
        kernel = kernel_fn(apply_fn, implementation="structured_derivatives", **axes)
        parts = Undivided(kernel, (TRAINABLE, FROZEN), examples(1))

    @jax.jit
    def compute(x1, x2):
        left, right = (parts.features(TRAINABLE, FROZEN, x) for x in (x1, x2))
        return left, parts.contract(TRAINABLE, FROZEN, left, right), diagonal_fn(parts)(TRAINABLE, FROZEN, left)

    left, kernel, rows = compute(X1, X2)
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), features) for features in (left, parts.specs(4))]
    assert shapes[0] == shapes[1]
    assert_close(kernel, contracted(explicit(apply_fn, "1", "2"), **axes))
    assert_close(rows, np.einsum("nn...->n...", contracted(explicit(apply_fn, "1"), **axes)))


@pytest.mark.parametrize(("trace", "diagonal"), [((-1,), ()), ((), (-2,)), ((1,), (2,))])
def test_diagonal_of_coupled_examples(trace, diagonal):
    axes = {"trace_axes": trace, "diagonal_axes": diagonal}
    kernel = kernel_fn(coupled_apply_fn, implementation="structured_derivatives", coupled=True, **axes)
    rows = jax.jit(coupled_diagonal_fn(kernel))(TRAINABLE, FROZEN, X1)
    assert_close(rows, np.einsum("nn...->n...", contracted(explicit(coupled_apply_fn, "1"), **axes)))


@each_axes
def test_swap_exchanges_the_examples(trace, diagonal):
    axes = {"trace_axes": trace, "diagonal_axes": diagonal}
    kernel, swapped = (contracted(explicit(apply_fn, *sides), **axes) for sides in ("12", "21"))
    np.testing.assert_allclose(swapped, kernel.transpose(swap_permutation(3, **axes)), rtol=1e-12, atol=1e-12)


def test_swap_leaves_diagonal_axes_where_they_are():
    assert swap_permutation(3, trace_axes=(), diagonal_axes=(1,)) == (1, 0, 2, 4, 3)
    assert swap_permutation(2, trace_axes=(-1,), diagonal_axes=()) == (1, 0)


def test_one_example_that_is_not_finite_does_not_reach_the_others():
    (x,) = examples(4)
    x[1, 2, 0], x[2, 0, 1] = np.nan, np.inf
    expected = reference_ntk(apply_fn, TRAINABLE, FROZEN, (x[::3],))
    for implementation in IMPLEMENTATIONS:
        kernel = jax.jit(kernel_fn(apply_fn, implementation=implementation, trace_axes=(-1,), diagonal_axes=()))
        result = kernel(TRAINABLE, FROZEN, (x,), (x,))
        assert_close(result[::3, ::3], expected)
        assert np.any(np.isnan(result[1])), implementation
