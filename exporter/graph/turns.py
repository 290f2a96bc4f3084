"""Long programs one after the other: what XLA:CPU computes of several at once can be wrong.

XLA leaves what idle threads might have helped with in the queue of the thread that runs a program, and takes it out
when that thread has nothing else to do. If all threads of the pool run programs, a long program's queue is full before
its end: 1,024 entries, one and more for each operation that XLA divides. From then on Eigen runs at once what it wanted
to queue, and its products of matrices then pack a block into memory that another one, not yet used, is in: seen in
jaxlib 0.7.2 and TensorFlow 2.21. One program at a time leaves threads to empty the queue, and has all cores to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from exporter.graph.traced import traced_once

# Floating point operations; some milliseconds. A program of fewer does not have that many operations which are large
# enough to be divided, and many requests for such ones should not wait for each other.
LONG = 2.0**28

_NAME = "ntk_exporter_long_program"


def in_turn(program: Callable[..., Any]) -> Callable[..., Any]:
    """`program`, of which, and of all others of a SavedModel, one runs at a time wherever that is loaded.

    Waiting takes no thread. XLA compiles within a turn too, and takes all cores for it.

    Args:
      program: a TF function of nests of tensors.

    Returns:
      A function of the same, traced once for each combination of their shapes.
    """

    def waiting(*args: Any) -> Any:
        # Sessions inline functions: a turn that began before arguments are there would wait for those that make them.
        args = tf.nest.map_structure(tf.identity, args)
        with tf.control_dependencies(tf.nest.flatten(args)):
            turn = tf.raw_ops.MutexLock(mutex=tf.raw_ops.MutexV2(shared_name=_NAME))
        with tf.control_dependencies([turn]):
            results = program(*args)
        with tf.control_dependencies(tf.nest.flatten(results)):
            over = tf.raw_ops.ConsumeMutexLock(mutex_lock=turn)
        with tf.control_dependencies([over]):
            return tf.nest.map_structure(tf.identity, results)

    return traced_once(waiting)
