"""Functions that are traced once, shared by all graphs that call them, and cheap to call for the first time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import tensorflow as tf


def traced_once(fn: Callable[..., Any], *, any_rows: Collection[int] = (), **options: Any) -> Callable[..., Any]:
    """`fn` of nests of tensors as one concrete function for each combination of their shapes and dtypes.

    A `tf.function` is traced again when it is called a second time, since the first call is the one that may create
    variables; a SavedModel would have everything twice, XLA's programs among it.

    Args:
      fn: takes and returns nests of tensors, and creates no variables.
      any_rows: numbers of arguments whose tensors' first axis may have any size, without another function for it.
      **options: of `tf.function`.
    """
    function = tf.function(fn, autograph=False, **options)
    traces: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        args = tf.nest.map_structure(tf.convert_to_tensor, args)
        specs = [tf.nest.map_structure(functools.partial(_spec, k in any_rows), arg) for k, arg in enumerate(args)]
        key = tuple(map(str, tf.nest.flatten(specs)))
        if key not in traces:
            with tf.init_scope():  # no graph that is being built becomes part of it
                traces[key] = function.get_concrete_function(*specs)
        return traces[key](*args)

    return call


def _spec(any_rows: bool, a: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *a.shape[1:]] if any_rows else a.shape, a.dtype)


@contextlib.contextmanager
def without_graph_optimizers() -> Iterator[None]:
    """Functions called by graphs that are traced or saved within it keep their graphs as they are when they are run.

    TensorFlow's optimizers would go over a function, with all that it calls, at its first call from each other one, and
    find nothing: what takes time is in XLA programs. Compilation aside, first calls take half as long without them.
    """
    key = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(key, False)
    tf.config.optimizer.set_experimental_options({key: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({key: before})
