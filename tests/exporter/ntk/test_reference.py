import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exporter.compat.jax_names import enable_x64
from exporter.ntk.neural_tangents_bridge import empirical_ntk_fn
from exporter.ntk.reference import contract_axes, reference_ntk

TRAINABLE = {
    "kernel": np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32),
    "bias": np.random.default_rng(1).standard_normal((2, 1)).astype(np.float32),
}
FROZEN = {"scale": np.float32([0.5, 2.0, 1.5])}
# trace_axes, diagonal_axes, what becomes of J Jᵀ of outputs abc with outputs def, and the sizes traced over.
AXES = [
    ((-1,), (), "nabcmdec->nmadbe", 2),
    ((), (), "nabcmdef->nmadbecf", 1),
    ((1, 3), (), "nabcmaec->nmbe", 4),
    ((3, 1), (), "nabcmaec->nmbe", 4),
    ((), (-1, 1), "nabcmaec->nmabec", 1),
    ((2,), (1,), "nabcmabf->nmacf", 3),
    ((3,), (-2,), "nabcmdbc->nmadb", 2),
    ((1, -2, -1), (), "nabcmabc->nm", 12),
]
each_axes = pytest.mark.parametrize(("trace", "diagonal", "einsum", "size"), AXES)


def apply_fn(trainable, frozen, inputs):
    """Outputs (n, 2, 3, 2), examples independent of each other."""
    (x,) = inputs
    y = jnp.tanh(x @ trainable["kernel"]).reshape(-1, 2, 3, 2)
    return y * frozen["scale"][:, None] + jax.nn.relu(trainable["bias"][:, None] * y)


def coupled_apply_fn(trainable, frozen, inputs):
    """The same with the mean over the batch taken off."""
    y = apply_fn(trainable, frozen, inputs)
    return y - jnp.mean(y, axis=0)


def examples(n, seed=0):
    return (np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32),)


X1, X2 = examples(4), examples(3, seed=1)


@functools.cache
def of_all_outputs(fn):
    """jax.jacobian in float64, and its products."""
    with enable_x64():
        trainable, frozen, *sides = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (TRAINABLE, FROZEN, X1, X2))
        jacobian = jax.jit(jax.jacobian(fn))
        jacobians = (jax.tree.leaves(jacobian(trainable, frozen, x)) for x in sides)
        rows = [[leaf.reshape(*leaf.shape[:4], -1) for leaf in side] for side in jacobians]
        return sum(np.einsum("nabcp,mdefp->nabcmdef", j1, j2) for j1, j2 in zip(*rows, strict=True))


def by_hand(fn, einsum, size):
    return np.einsum(einsum, of_all_outputs(fn)) / size


@pytest.mark.parametrize(
    ("fn", "trace", "diagonal", "einsum", "size"),
    [(apply_fn, *axes) for axes in AXES] + [(coupled_apply_fn, *axes) for axes in AXES[1::2]],
)
def test_equals_the_contracted_jacobians(fn, trace, diagonal, einsum, size):
    axes = {"trace_axes": trace, "diagonal_axes": diagonal, "coupled": fn is coupled_apply_fn}
    kernel = reference_ntk(fn, TRAINABLE, FROZEN, X1, X2, **axes)
    assert kernel.dtype == np.float64
    np.testing.assert_allclose(kernel, by_hand(fn, einsum, size), rtol=1e-12, atol=1e-12)


@each_axes
def test_order_of_axes_is_neural_tangents(trace, diagonal, einsum, size):
    axes = {"trace_axes": trace, "diagonal_axes": diagonal}
    ntk_fn = empirical_ntk_fn(
        lambda params, x: apply_fn(params, FROZEN, (x,)), vmap_axes=0, implementation="structured_derivatives", **axes
    )
    kernel = jax.jit(ntk_fn)(X1[0], X2[0], TRAINABLE)
    np.testing.assert_allclose(by_hand(apply_fn, einsum, size), kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("rows", [7, 24])
def test_little_memory_gives_the_same(rows, coupled):
    """A kernel of 48 by 36 rows in chunks of `rows`, which neither divide an example's 12 nor the whole."""
    fn, x1, x2 = coupled_apply_fn if coupled else apply_fn, examples(4), examples(3, seed=1)
    parameters = sum(v.size for v in TRAINABLE.values())
    settings = {"trace_axes": (), "coupled": coupled}
    in_one = reference_ntk(fn, TRAINABLE, FROZEN, x1, x2, **settings)
    chunked = reference_ntk(fn, TRAINABLE, FROZEN, x1, x2, memory=2 * 8 * parameters * rows, **settings)
    np.testing.assert_allclose(chunked, in_one, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_without_x2_it_is_x1(coupled, memory):
    fn, x = coupled_apply_fn if coupled else apply_fn, examples(3)
    settings = {"trace_axes": (1,), "coupled": coupled, "memory": memory}
    kernel = reference_ntk(fn, TRAINABLE, FROZEN, x, **settings)
    np.testing.assert_allclose(kernel, reference_ntk(fn, TRAINABLE, FROZEN, x, x, **settings), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(kernel, kernel.transpose(1, 0, 3, 2, 5, 4), rtol=1e-13, atol=1e-13)


def test_examples_of_an_independent_model_do_not_meet():
    """Each example's rows are computed from it alone, so that one NaN stays in its rows and columns."""
    (x,) = examples(3)
    x[1] = np.nan
    kernel = reference_ntk(apply_fn, TRAINABLE, FROZEN, (x,))
    assert np.all(np.isnan(kernel[1]))
    assert np.all(np.isnan(kernel[:, 1]))
    assert np.all(np.isfinite(kernel[::2, ::2]))


def test_several_inputs_and_integers():
    def embeds(trainable, frozen, inputs):
        x, tokens = inputs
        return x @ trainable["kernel"] + trainable["kernel"][tokens].sum(1)

    x, tokens = examples(3)[0], np.array([[0, 1], [1, 1], [4, 2]], np.int32)
    kernel = reference_ntk(embeds, {"kernel": TRAINABLE["kernel"]}, {}, (x, tokens))
    rows = x.astype(np.float64) + np.eye(5)[tokens].sum(1)  # dense layers' kernels are those of their inputs
    np.testing.assert_allclose(kernel, rows @ rows.T, rtol=1e-12)


def test_scalar_outputs():
    kernel = reference_ntk(
        lambda p, s, x: x[0] @ p["kernel"][:, 0], TRAINABLE, {}, examples(2), examples(3, seed=1), trace_axes=()
    )
    np.testing.assert_allclose(kernel, examples(2)[0].astype(np.float64) @ examples(3, seed=1)[0].T, rtol=1e-12)


def test_more_precise_than_float32():
    """The kernel of a model whose Jacobian cancels in float32: only rounding differs, and that is gone."""

    def cancels(trainable, frozen, inputs):
        y = inputs[0] @ trainable["kernel"]
        return (y + np.float32(1e6)) - np.float32(1e6) - 0.999 * y

    kernel = reference_ntk(cancels, {"kernel": TRAINABLE["kernel"]}, {}, examples(3))
    x, factor = examples(3)[0].astype(np.float64), 1 - float(np.float32(0.999))
    np.testing.assert_allclose(kernel, factor**2 * x @ x.T, rtol=1e-12)


def test_contract_axes_of_a_matrix_of_outputs():
    kernel = np.random.default_rng(0).standard_normal((2, 3, 4, 3))
    np.testing.assert_allclose(
        contract_axes(kernel, trace_axes=(1,), diagonal_axes=()), np.einsum("nama->nm", kernel) / 3
    )
    np.testing.assert_array_equal(
        contract_axes(kernel, trace_axes=(), diagonal_axes=(-1,)), np.einsum("nama->nma", kernel)
    )
