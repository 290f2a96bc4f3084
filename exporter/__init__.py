"""Turns a Keras model and an NTK configuration into a SavedModel that computes the model's neural tangent kernel.

The public names are imported when they are first used, so that `import exporter` loads neither TensorFlow nor JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.config import ExportConfig, NtkConfig, load_config
    from exporter.errors import ExportError
    from exporter.export import export_savedmodel
    from exporter.prototype import empirical_ntk_fn_tf, get_apply_fn_and_params

__version__ = "0.1.0"

__all__ = [
    "ExportConfig",
    "ExportError",
    "NtkConfig",
    "__version__",
    "empirical_ntk_fn_tf",
    "export_savedmodel",
    "get_apply_fn_and_params",
    "load_config",
]

_MODULES = {
    "ExportConfig": "exporter.config",
    "ExportError": "exporter.errors",
    "NtkConfig": "exporter.config",
    "empirical_ntk_fn_tf": "exporter.prototype",
    "export_savedmodel": "exporter.export",
    "get_apply_fn_and_params": "exporter.prototype",
    "load_config": "exporter.config",
}


def __getattr__(name: str) -> Any:
    """Imports the module that a public name comes from."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
