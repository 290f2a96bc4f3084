"""Serving of exported kernels. Imports neither JAX nor `exporter`.

The public names are imported when they are first used, so that `import serving` loads neither TensorFlow nor gRPC.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from serving.client import Client, ServingError
    from serving.loading import load
    from serving.local_server import LocalServer

__all__ = ["Client", "LocalServer", "ServingError", "load"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={"client": ["Client", "ServingError"], "loading": ["load"], "local_server": ["LocalServer"]},
)
