"""Functions that meet parameters in every way, and the rules that their sites must get."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CONV = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of parameters, constants and one input, and the rules that its sites must get."""

    fn: Callable
    params: dict[str, tuple[int, ...]]
    x: tuple[int, ...]
    rules: tuple[str, ...]
    frozen: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    tokens: int = 0


def _mlp(p, s, x):
    return jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"] + p["d"]


def _left_operand(p, s, x):
    return jnp.einsum("jk,nk->nj", p["a"], jnp.tanh(jnp.einsum("ik,nk->ni", p["b"], x)))


def _batched_weights(p, s, x):
    return jnp.tanh(jnp.einsum("ngti,gij->ntgj", x, p["w"])).reshape(x.shape[0], -1) @ p["c"]


def _tied(p, s, x):
    h = jnp.tanh(x @ p["a"])
    for _ in range(2):
        h = jnp.tanh(h @ p["w"] + p["b"])
    return (h @ p["w"].T) @ p["c"]


def _conv(p, s, x):
    y = lax.conv_general_dilated(
        x, p["k"], (2, 1), ((1, 2), (0, 1)), rhs_dilation=(1, 2), feature_group_count=2, **CONV
    )
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _conv_transposed(p, s, x):
    y = lax.conv_transpose(x, p["k"], (2, 3), "SAME", rhs_dilation=(2, 1), **CONV)
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _conv_channels_first(p, s, x):
    y = lax.conv_general_dilated(x, p["k"], (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH"))
    return jnp.tanh(y).sum(2) @ p["c"]


def _depthwise_3d(p, s, x):
    y = lax.conv_general_dilated(
        x, p["k"], (1, 2, 1), "VALID", feature_group_count=3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _conv_negative_padding(p, s, x):
    y = lax.conv_general_dilated(x, p["k"], (1, 1), ((-1, 2), (1, -1)), lhs_dilation=(2, 1), **CONV)
    return jnp.tanh(y).reshape(len(x), -1) @ p["c"]


def _linear_tail(p, s, x):
    """After the first layer only linear equations, one of them in a call and one with a constant."""
    y = jnp.tanh(lax.conv_general_dilated(x, p["k"], (1, 1), "VALID", **CONV))
    y = lax.conv_general_dilated(y, p["l"], (1, 2), ((1, 1), (0, 1)), feature_group_count=2, **CONV) + p["b"]
    y = jax.jit(lambda y: (y[:, ::-1] * s["m"]).reshape(len(y), -1))(y)
    return y @ p["c"] + p["d"]


def _max_pooling(p, s, x):
    """Windows that overlap, and leave some of the data out; equal maxima; and windows of too many taps."""

    def largest(y, window, strides, padding):
        return lax.reduce_window(y, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), padding)

    y = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", **CONV)
    y = (y + lax.stop_gradient(jnp.round(y) - y)) * p["s"]
    y = largest(y, (3, 2), (2, 1), "SAME") + p["b"]
    y = largest(y, (2, 2), (2, 3), ((0, 0), (1, 0), (0, 1), (0, 0))) * p["t"]
    return largest(y, (2, 13), (1, 1), "SAME").reshape(len(x), -1) @ p["c"]


def _convs_of_many_positions(p, s, x):
    y = lax.conv_general_dilated(
        x, p["a"], (1, 2), ((2, 1), (0, 3)), rhs_dilation=(2, 1), dimension_numbers=("NCHW", "OIHW", "NHWC")
    )
    y = lax.conv_general_dilated(jnp.tanh(y), p["b"], (2, 1), ((1, 2), (-1, 1)), lhs_dilation=(1, 2), **CONV)
    return jnp.tanh(y).sum((1, 2)) @ p["c"]


def _convs_of_large_kernels(p, s, x):
    """Each of more taps than are written out."""
    y = lax.conv_general_dilated(x, p["a"], (2, 1), ((3, 3), (3, 2)), feature_group_count=2, **CONV)
    strange = {"lhs_dilation": (2, 1), "rhs_dilation": (2, 1), "feature_group_count": 2}
    y = lax.conv_general_dilated(jnp.tanh(y), p["b"], (1, 2), ((5, 4), (4, 5)), **strange, **CONV)
    y = lax.conv_general_dilated(jnp.tanh(y), p["k"], (2, 2), "SAME", **CONV)
    return jnp.tanh(y).sum((1, 2)) @ p["c"]


def _batch_norm(p, s, x):
    inverse = lax.rsqrt(jnp.square(s["v"]) + 0.3) * p["g"]
    return jnp.tanh(x * inverse + (p["b"] - s["m"] * inverse)) @ p["c"]


def _attention(p, s, x):
    h = p["e"][x] + p["pos"]
    q, k, v = (jnp.einsum("btd,dhf->bthf", h, p[n]) for n in "qkv")
    h = h + jnp.einsum("bhtu,buhf,hfd->btd", jax.nn.softmax(jnp.einsum("bthf,buhf->bhtu", q, k)), v, p["o"])
    m = h.mean(-1, keepdims=True)
    h = (h - m) * lax.rsqrt(((h - m) ** 2).mean(-1, keepdims=True) + 1e-3) * p["g"] + p["b"]
    return (h @ p["e"].T).mean(1) @ p["c"]


def _recurrent(p, s, x):
    def step(carry, x):
        carry = jnp.tanh(x @ p["w"] + carry @ p["u"] + p["b"])
        return carry, carry * p["g"]

    init = jnp.zeros((x.shape[0], 4)) + p["h0"]
    carry, ys = lax.scan(step, init, x.swapaxes(0, 1), reverse=True)
    return carry @ p["c"] + ys.sum(0)[:, :2]


def _nested_scans(p, s, x):
    def inner(carry, x):
        return jnp.tanh(carry + x @ p["w"]), None

    def outer(carry, x):
        carry, _ = lax.scan(inner, carry, x)
        return carry @ p["u"], None

    carry, _ = lax.scan(outer, jnp.zeros((x.shape[0], 4)), jnp.moveaxis(x, 0, 2))
    return carry @ p["c"]


def _scan_over_layers(p, s, x):
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w + p["b"]), None), x, p["layers"])
    return h @ p["c"]


def _scan_of_parameters(p, s, x):
    """A scan that also returns something made of parameters alone."""
    h, ys = lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), jnp.tanh(p["w"]).sum(0)), x, None, 3)
    return h @ p["c"] + jnp.tanh(ys.sum(0)[:2])


def _scan_with_a_counter(p, s, x):
    """Parameters chosen, and scaled, by a counter that the loop carries, as TensorFlow's loops have it."""

    def step(carry, _):
        k, h = carry
        return (k + 1, jnp.tanh(h @ p["layers"][k] * (p["g"] * (k + 1)))), None

    (_, h), _ = lax.scan(step, (0, x), None, 3)
    return h @ p["c"]


def _weight_norm(p, s, x):
    return jnp.tanh(x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0) * p["g"])) @ p["c"]


def _no_rule(p, s, x):
    y = jnp.where(x[:, :2] > 0, p["z"], 0.0) / (3 + p["d"] ** 2)
    y = y + lax.cond(x[0, 0] > 0, lambda w: w @ p["w"], lambda w: -w @ p["w"], x)
    return jnp.concatenate([y, jnp.broadcast_to(p["t"], (len(x), 2))], 1) * p["q"] - p["q"]


@jax.custom_vjp
def _scaled(x, w):
    return x * w


_scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda saved, d: (d * saved[1], jnp.sum(d * saved[0], 0)))


def _nested_calls(p, s, x):
    layer = jax.jit(lambda x, w: jax.checkpoint(lambda x: jax.nn.silu(jax.jit(jnp.dot)(x, w)))(x))
    return _scaled(layer(layer(x, p["a"]), p["b"]), p["c"])


CASES = {
    "mlp": Case(_mlp, {"a": (5, 7), "b": (7,), "c": (7, 6), "d": (6,)}, (5,), ("dense", "bias", "dense", "bias")),
    "left operand": Case(_left_operand, {"a": (6, 4), "b": (4, 5)}, (5,), ("dense", "dense")),
    "batched weights": Case(_batched_weights, {"w": (2, 5, 3), "c": (24, 6)}, (2, 4, 5), ("dense", "dense")),
    "tied": Case(
        _tied,
        {"a": (5, 4), "w": (4, 4), "b": (4,), "c": (4, 6)},
        (5,),
        ("dense", "dense", "bias", "dense", "bias", "dense", "dense"),
    ),
    "conv": Case(_conv, {"k": (3, 2, 2, 6), "c": (4 * 3 * 6, 6)}, (6, 4, 4), ("convolution", "dense")),
    "conv transposed": Case(
        _conv_transposed, {"k": (3, 3, 2, 3), "c": (6 * 12 * 3, 6)}, (3, 4, 2), ("convolution", "dense")
    ),
    "conv channels first": Case(_conv_channels_first, {"k": (4, 2, 3), "c": (4, 6)}, (2, 5), ("convolution", "dense")),
    "depthwise 3d": Case(
        _depthwise_3d, {"k": (2, 2, 2, 1, 6), "c": (3 * 2 * 2 * 6, 6)}, (4, 4, 3, 3), ("convolution", "dense")
    ),
    "conv negative padding": Case(
        _conv_negative_padding, {"k": (2, 2, 2, 3), "c": (7 * 3 * 3, 6)}, (4, 4, 2), ("convolution", "dense")
    ),
    "linear tail": Case(
        _linear_tail,
        {"k": (2, 2, 2, 4), "l": (3, 2, 2, 6), "b": (6,), "c": (5 * 3 * 6, 6), "d": (6,)},
        (6, 6, 2),
        ("convolution", "convolution", "bias", "dense", "bias"),
        {"m": (6,)},
    ),
    "max pooling": Case(
        _max_pooling,
        {"k": (3, 3, 2, 3), "s": (3,), "b": (3,), "t": (3,), "c": (3 * 4 * 3, 6)},
        (9, 12, 2),
        ("convolution", "scale", "bias", "scale", "dense"),
    ),
    "convs of many positions": Case(
        _convs_of_many_positions,
        {"a": (3, 2, 3, 2), "b": (3, 2, 3, 4), "c": (4, 6)},
        (2, 18, 21),
        ("convolution", "convolution", "dense"),
    ),
    "convs of large kernels": Case(
        _convs_of_large_kernels,
        {"a": (6, 6, 1, 4), "b": (5, 6, 2, 4), "k": (7, 4, 4, 3), "c": (3, 6)},
        (9, 8, 2),
        ("convolution", "convolution", "convolution", "dense"),
    ),
    "batch norm": Case(
        _batch_norm, {"g": (5,), "b": (5,), "c": (5, 6)}, (3, 5), ("scale", "bias", "dense"), {"v": (5,), "m": (5,)}
    ),
    "attention": Case(
        _attention,
        {"e": (9, 4), "pos": (5, 4), "q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "o": (2, 3, 4)}
        | {"g": (4,), "b": (4,), "c": (9, 6)},
        (5,),
        ("embedding", "bias", *["dense"] * 4, "scale", "bias", "dense", "dense"),
        tokens=9,
    ),
    "recurrent": Case(
        _recurrent,
        {"w": (3, 4), "u": (4, 4), "b": (4,), "g": (4,), "h0": (4,), "c": (4, 2)},
        (6, 3),
        ("generic", "dense", "dense", "bias", "scale", "dense"),
    ),
    "nested scans": Case(
        _nested_scans, {"w": (3, 4), "u": (4, 4), "c": (4, 2)}, (2, 3, 3), ("dense", "dense", "dense")
    ),
    "scan over layers": Case(
        _scan_over_layers, {"layers": (3, 4, 4), "b": (4,), "c": (4, 2)}, (4,), ("generic", "bias", "dense")
    ),
    "scan of parameters": Case(_scan_of_parameters, {"w": (4, 4), "c": (4, 2)}, (4,), ("generic", "dense")),
    "scan with a counter": Case(
        _scan_with_a_counter,
        {"layers": (3, 4, 4), "g": (4,), "c": (4, 2)},
        (4,),
        ("generic", "scale", "dense"),
    ),
    "weight norm": Case(_weight_norm, {"v": (5, 4), "g": (4,), "c": (4, 6)}, (5,), ("dense", "dense")),
    "no rule": Case(
        _no_rule,
        {"z": (2,), "d": (2,), "w": (5, 2), "t": (2,), "q": (4,)},
        (5,),
        ("generic", "generic", "generic", "generic", "scale", "bias"),
    ),
    "nested calls": Case(_nested_calls, {"a": (5, 4), "b": (4, 3), "c": (3,)}, (5,), ("dense", "dense", "generic")),
}


def make(case: Case, seed: int = 0):
    rng = np.random.default_rng(seed)

    def draw(shape):
        return (rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))).astype(np.float32)

    def inputs(n):
        shape = (n, *case.x)
        return (rng.integers(0, case.tokens, shape) if case.tokens else rng.normal(size=shape).astype(np.float32),)

    def apply_fn(p, s, x):
        return case.fn(p, s, x[0])

    params, frozen = ({k: draw(shape) for k, shape in v.items()} for v in (case.params, case.frozen))
    return apply_fn, params, frozen, inputs(4), inputs(3)
