"""The configuration stage: YAML and `--set` come in, the frozen dataclasses `NtkConfig` and `ExportConfig` go out.

It alone knows YAML and which keys there are. It imports neither TensorFlow nor JAX, so that a wrong configuration is
reported at once, all its problems together.
"""

from exporter.config.checks import ConfigError
from exporter.config.reading import load_config
from exporter.config.sections import (
    IMPLEMENTATIONS,
    KERNEL_SIGNATURES,
    PLATFORMS,
    PRECISIONS,
    SIGNATURES,
    ExportConfig,
    FeaturesConfig,
    NtkConfig,
    VerifyConfig,
    check_axes,
    check_together,
)

__all__ = [
    "IMPLEMENTATIONS",
    "KERNEL_SIGNATURES",
    "PLATFORMS",
    "PRECISIONS",
    "SIGNATURES",
    "ConfigError",
    "ExportConfig",
    "FeaturesConfig",
    "NtkConfig",
    "VerifyConfig",
    "check_axes",
    "check_together",
    "load_config",
]
