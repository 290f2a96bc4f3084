"""What the embedded server can be told: frozen dataclasses, checked when they are made."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """A model to serve.

    Attributes:
      base_path: the model base directory, which has the versions /1, /2, ...
      name: by which clients ask for it; the default is TF Serving's.
      versions: exactly these versions are served; if empty, the latest `num_versions`.
      num_versions: how many of the latest versions are served; None for all.
      labels: version by label, such as {"stable": 1, "canary": 2}.
    """

    base_path: pathlib.Path
    name: str = "default"
    versions: tuple[int, ...] = ()
    num_versions: int | None = 1
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError with all problems."""
        object.__setattr__(self, "base_path", pathlib.Path(self.base_path))
        object.__setattr__(self, "labels", types.MappingProxyType(dict(self.labels)))
        latest = self.num_versions
        _check(
            self,
            name=("a name without '/' and ':'", bool(self.name) and not set(self.name) & {"/", ":"}),
            versions=("positive numbers", all(version > 0 for version in self.versions)),
            num_versions=("at least 1, or None for all", latest is None or latest >= 1),
        )


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Where and within which limits models are served.

    Attributes:
      host: address to bind to; anything else than loopback opens the server to the network, without authentication.
      grpc_port: 0 for any free one.
      rest_port: 0 for any free one.
      poll_seconds: how often the base directories are looked at for versions; 0 for once.
      max_message_bytes: largest request body, message either way, and tensor that a message stands for.
      max_concurrency: requests computed at the same time; each may need the model's whole memory budget.
      max_queue: requests that wait for a place beside these; one more is refused.
      body_seconds: longest time that a client may take to send the body of a REST request.
      rest_timeout_seconds: longest time until the answer to a REST request, which cannot carry a deadline.
      shutdown_seconds: longest time that requests get to finish when the server stops.
      log_requests: whether each request is logged (not what it contains).
      warmup: whether a version's warmup requests are replayed before it is served.
      batching: whether requests are joined, of versions that have batching parameters of their own and no others.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 0
    rest_port: int = 0
    poll_seconds: float = 1.0
    max_message_bytes: int = _GIB
    max_concurrency: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    max_queue: int = 256
    body_seconds: float = 30.0
    rest_timeout_seconds: float = 30.0
    shutdown_seconds: float = 30.0
    log_requests: bool = False
    warmup: bool = True
    batching: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError with all problems."""
        ports = "0 to 65535", range(65536)
        _check(
            self,
            host=("an address", bool(self.host)),
            grpc_port=(ports[0], self.grpc_port in ports[1]),
            rest_port=(ports[0], self.rest_port in ports[1]),
            poll_seconds=("at least 0", self.poll_seconds >= 0),
            max_message_bytes=("1 to 2147483647", 1 <= self.max_message_bytes < 1 << 31),
            max_concurrency=("at least 1", self.max_concurrency >= 1),
            max_queue=("at least 0", self.max_queue >= 0),
            body_seconds=("more than 0", self.body_seconds > 0),
            rest_timeout_seconds=("more than 0", self.rest_timeout_seconds > 0),
            shutdown_seconds=("at least 0", self.shutdown_seconds >= 0),
        )


def _check(options: Any, **expectations: tuple[str, bool]) -> None:
    """Raises ValueError with all expectations that are not met."""
    problems = [
        f"{name}: expected {expected}, got {getattr(options, name)!r}"
        for name, (expected, met) in expectations.items()
        if not met
    ]
    if problems:
        raise ValueError("\n".join(problems))
