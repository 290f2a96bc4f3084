import contextlib

import pytest
import tensorflow as tf

from exporter.graph.traced import traced_once, without_graph_optimizers

KEY = "disable_meta_optimizer"


def test_one_trace_for_each_combination_of_shapes_and_dtypes():
    traced = []

    def fn(pair):
        traced.append(pair)
        return pair[0] + tf.cast(pair[1], pair[0].dtype)

    shared = traced_once(fn)
    caller = tf.function(lambda x: (shared((x, 1)), shared((x, 2)), shared((x, 2.5))))
    assert [float(y) for y in caller(tf.constant(3.0))] == [4.0, 5.0, 5.5]
    assert len(traced) == 2


@pytest.mark.parametrize("before", [False, True])
def test_options_of_others_are_restored(before):
    tf.config.optimizer.set_experimental_options({KEY: before})
    try:
        with contextlib.suppress(ZeroDivisionError), without_graph_optimizers():
            within = tf.config.optimizer.get_experimental_options()[KEY]
            raise ZeroDivisionError
        assert within is True
        assert tf.config.optimizer.get_experimental_options()[KEY] is before
    finally:
        tf.config.optimizer.set_experimental_options({KEY: False})
