"""What the client needs of a protocol; `grpc_transport` and `rest_transport` have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from serving.client.model import ModelRef, Prediction, ServedModel, VersionStatus


class Transport(Protocol):
    """A connection to one server. All methods may be called from several threads, and raise `ServingError`.

    Attributes:
      address: the server's, as it was given.
      tells_version: whether answers say which version they are of.
    """

    address: str
    tells_version: bool

    def predict(
        self, model: ModelRef, signature: str, inputs: Mapping[str, np.ndarray], timeout: float | None
    ) -> Prediction:
        """Calls a signature; `timeout` in seconds."""

    def metadata(self, model: ModelRef, timeout: float | None) -> ServedModel:
        """The version that answers for `model` and its signatures; no manifest."""

    def status(self, model: ModelRef, timeout: float | None) -> list[VersionStatus]:
        """The states of the model's versions, or of the one that is named."""

    def encoded_size(self, dtype: np.dtype, length: int = 0) -> int:
        """Bytes that one number, or a text of `length` bytes, takes in a message, at most."""

    def close(self) -> None:
        """Gives the connection up."""
