import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import tensorflow as tf

from exporter.config import ExportConfig, NtkConfig
from exporter.graph.building import build_module
from exporter.graph.lowering import lower
from exporter.graph.turns import LONG, in_turn
from exporter.plan.choosing import choose
from exporter.plan.planning import make_plan


class Counted:
    """A TF function of a tensor, and how many of its calls were at work at most."""

    def __init__(self):
        self.most, self._now, self._lock = 0, 0, threading.Lock()

    def __call__(self, x):
        result = tf.numpy_function(self._work, [x], x.dtype)
        result.set_shape(x.shape)
        return {"twice": result}

    def _work(self, x):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        if x.sum() < 0:
            raise ValueError("negative")
        return 2 * x


def at_once(fn, count):
    """The results of fn(0), fn(1), ..., all called at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(fn, range(count)))


def test_one_at_a_time():
    counted = Counted()
    programs = in_turn(counted), in_turn(counted)

    results = at_once(lambda k: programs[k % 2](tf.fill([3], float(k)))["twice"].numpy(), 6)

    np.testing.assert_array_equal(results, [[2.0 * k] * 3 for k in range(6)])
    assert counted.most == 1


def test_a_turn_ends_with_an_error():
    run = in_turn(Counted())
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative"):
        run(tf.constant([-1.0]))
    assert run(tf.constant([1.0]))["twice"].numpy() == 2


def test_one_turn_after_another_in_a_session():
    """A session puts all functions into one graph, where no turn may begin before those that its arguments are of."""
    counted = Counted()
    run = in_turn(lambda x: {"twice": 2 * x})
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [3])
        y = tf.function(lambda x: run(run(run(x)["twice"])["twice"])["twice"] + in_turn(counted)(x)["twice"])(x)
    in_time = tf.compat.v1.RunOptions(timeout_in_ms=60_000)  # an error, rather than to wait for each other
    with tf.compat.v1.Session(graph=graph) as session:
        results = at_once(lambda k: session.run(y, {x: [k] * 3}, options=in_time), 4)
    np.testing.assert_array_equal(results, [[10.0 * k] * 3 for k in range(4)])
    assert counted.most == 1


def test_two_long_programs_at_once_are_right():
    """Without turns XLA:CPU's products are wrong on two to four cores: see the module."""

    def fn(small, wide, many):
        def divided(k, many):
            return jnp.sin(many) + k

        def product(k, total):
            return total + jax.lax.dot_general(small + 1e-9 * total[0, 0], wide, (((0,), (0,)), ((), ())))

        many = jax.lax.fori_loop(0, 1400, divided, many)
        return jax.lax.fori_loop(0, 4, product, jnp.zeros((48, 5120)) + 0 * many[0])

    rng = np.random.default_rng(0)
    args = [rng.standard_normal(shape).astype(np.float32) for shape in ((784, 48), (784, 5120), (1 << 17,))]
    run = in_turn(lower(fn, platforms=("cpu",)))
    alone = run(*args).numpy()
    np.testing.assert_allclose(alone, 4 * args[0].T @ args[1], rtol=0, atol=1e-3)

    for result in at_once(lambda _: run(*args).numpy(), 4):
        np.testing.assert_array_equal(result, alone)


@pytest.mark.parametrize("long", [False, True])
def test_only_long_programs_take_turns(monkeypatch, long):
    if long:
        monkeypatch.setattr("exporter.graph.programs.LONG", 1.0)
    names = ["ntk_symmetric", "ntk_features", "forward"]
    plan = make_plan(models.mlp(), NtkConfig(), ExportConfig(platforms="cpu", signatures=names))
    assert 0 < plan.flops_of_example < LONG / 64

    module = build_module(plan, choose(plan))

    for name in names:
        functions = module.signatures_to_save[name].graph.as_graph_def().library.function
        assert any(node.op == "MutexLock" for f in functions for node in f.node_def) == long
