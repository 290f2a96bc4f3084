"""The client: NumPy arrays come in, kernels go out, from TF Serving or the embedded server, without TensorFlow or JAX.

Calls become requests (`arguments`, `calls`, `tiles`: pure), a `connection` sends them with retries and knows what is
served (`model`), a `transport` speaks a protocol. It alone knows gRPC and REST from a client's side.
"""

from serving.client.client import Client
from serving.client.errors import ServingError

__all__ = ["Client", "ServingError"]
