"""Turns a Keras model and an NTK configuration into a SavedModel that computes the model's neural tangent kernel.

The public names are imported when they are first used, so that `import exporter` loads neither TensorFlow nor JAX.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from exporter.config import ExportConfig, NtkConfig, load_config
    from exporter.errors import ExportError
    from exporter.export import export_savedmodel
    from exporter.prototype import empirical_ntk_fn_tf, get_apply_fn_and_params, ntk_features_fn

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
    "ntk_features_fn",
]

__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["ExportConfig", "NtkConfig", "load_config"],
        "errors": ["ExportError"],
        "export": ["export_savedmodel"],
        "prototype": ["empirical_ntk_fn_tf", "get_apply_fn_and_params", "ntk_features_fn"],
    },
)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
