"""JAX function to TF function: StableHLO for several platforms in one XlaCallModule, and nothing of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import tensorflow as tf

from exporter.compat import jax2tf_names
from exporter.compat.jax_names import enable_x64, stablehlo_in_version
from exporter.compat.tensorflow_names import set_attribute
from exporter.graph.traced import traced_once

# The newest XlaCallModule that TF 2.19 to 2.21 and TF Serving 2.20 all read; JAX 0.7.2 to 0.10.2 would write 10.
CALLING_CONVENTION_VERSION = 9
# TF 2.19 reads no newer StableHLO; JAX 0.7.2 writes 1.12.1 and 0.10.2 1.15.0, whose elementary functions (rsqrt_v2,
# tanh_v2) it rejects.
STABLEHLO_VERSION = "1.8.0"

# What products of float32 matrices may be rounded to, in JAX's names. CPUs always use float32. Those of half precision,
# as a model may have them, are not concerned.
_MATMUL_PRECISION = {
    "float32": "float32",
    "tensorfloat32": "tensorfloat32",
    "bfloat16": "bfloat16",
    "float64": "float32",
    "model": "float32",
}


def lower(
    fn: Callable[..., Any],
    *,
    platforms: Sequence[str],
    precision: str = "float32",
    polymorphic_shapes: Sequence[Any] | None = None,
    lowered: Callable[[], object] = lambda: None,
) -> Callable[..., Any]:
    """Returns `fn` as a TF function that XLA compiles once for each combination of shapes it is called with.

    It is traced for each too, or once for all numbers of rows of arguments that have polymorphic shapes.

    Args:
      fn: a JAX function of pytrees of arrays.
      platforms: the platforms to lower for: cpu, cuda, rocm, tpu.
      precision: a key of the configuration's `PRECISIONS`; float64 makes the whole of `fn` see 64-bit types.
      polymorphic_shapes: as in `jax2tf.convert`; None if the shapes are those of the arguments.
      lowered: called after each trace.

    Returns:
      A function of nests of tensors like the arguments, without gradient.
    """
    converted = jax2tf_names.convert(
        fn,
        with_gradient=False,
        polymorphic_shapes=polymorphic_shapes,
        native_serialization_platforms=tuple(platforms),
    )

    def program(*args: Any) -> Any:
        with _lowering(precision):
            result = converted(*args)
        for op in tf.compat.v1.get_default_graph().get_operations():
            if op.type == "XlaCallModule":
                module = stablehlo_in_version(op.get_attr("module"), STABLEHLO_VERSION)
                set_attribute(op, "module", tf.compat.v1.AttrValue(s=module))
        lowered()
        return result

    any_rows = [k for k, shape in enumerate(polymorphic_shapes or ()) if shape is not None]
    return traced_once(program, any_rows=any_rows, jit_compile=True)


@contextlib.contextmanager
def _lowering(precision: str) -> Iterator[None]:
    """JAX as the lowering wants it; and as it was, afterwards."""
    settings = {
        "jax_export_calling_convention_version": CALLING_CONVENTION_VERSION,
        "jax_traceback_in_locations_limit": 0,  # no source files or paths of this machine in the StableHLO
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with (
            jax.default_matmul_precision(_MATMUL_PRECISION[precision]),
            enable_x64(precision == "float64"),
        ):
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
