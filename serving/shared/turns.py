"""Whether the long programs of exports take turns: on CPUs they have to, or they compute wrong products.

`exporter.graph.turns` says why, and makes the graphs. What they compute does not matter while they are compiled, which
takes longest and is best done beside each other; so there is a variable, outside of every graph and no part of a
SavedModel, that says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf

MUTEX = "ntk_exporter_long_program"
_TOGETHER = "ntk_exporter_long_programs_together"
CPU = "/device:CPU:0"  # where both are, whatever computes


def not_needed() -> tf.Tensor:
    """A scalar: whether this session, or without one this process, is within `all_at_once`."""
    with tf.device(CPU):
        return tf.raw_ops.VarIsInitializedOp(resource=_variable())


@contextlib.contextmanager
def all_at_once(session: tf.compat.v1.Session | None = None) -> Iterator[None]:
    """Within it long programs do not wait for each other, and may be wrong: those of a session, or of none."""

    def run(make: Callable[[], tf.Operation | None]) -> None:
        with contextlib.nullcontext() if session is None else session.graph.as_default(), tf.device(CPU):
            op = make()
        if session is not None:
            session.run(op)

    run(lambda: tf.raw_ops.AssignVariableOp(resource=_variable(), value=True))
    try:
        yield
    finally:
        run(lambda: tf.raw_ops.DestroyResourceOp(resource=_variable(), ignore_lookup_error=True))


def _variable() -> tf.Tensor:
    return tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name=_TOGETHER)
