"""One server and one model: what is served there, and requests with retries."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from serving.client.errors import ServingError
from serving.client.model import (
    MANIFEST_SIGNATURE,
    ModelRef,
    Prediction,
    ServedModel,
    SignatureSpec,
    VersionStatus,
)
from serving.client.retry import with_retries
from serving.client.transport import Transport

T = TypeVar("T")

_POLL = 0.2  # seconds between questions for the state of a model
_FRESH = 1.0  # seconds for which the metadata are taken to hold if answers do not tell their version


class Connection:
    """Requests about one model on one server. Methods may be called from several threads, and raise `ServingError`.

    Attributes:
      transport: the protocol.
      ref: the model, and the version or label that is asked for.
    """

    def __init__(self, transport: Transport, ref: ModelRef, deadline: float | None) -> None:
        """Connects when first used.

        Args:
          transport: the protocol.
          ref: the model.
          deadline: seconds for each request with its repetitions; None for no limit.
        """
        self.transport, self.ref = transport, ref
        self._deadline = deadline
        self._reached = False  # whether this server ever answered; what never did is not waited for
        self._served: ServedModel | None = None
        self._asked = 0.0  # when that was
        self._told: dict[int, ServedModel] = {}  # versions with their manifests

    def served(self, *, refresh: bool = False, within: float | None = None) -> ServedModel:
        """The version that answers, without its manifest, as it was when last asked; for `within` see `send`."""
        served = self._served
        old = not self.transport.tells_version and time.monotonic() - self._asked > _FRESH
        if refresh or old or served is None:
            served = self._retried(lambda timeout: self.transport.metadata(self.ref, timeout), within=within)
            self._served, self._asked = served, time.monotonic()
        return served

    def with_manifest(self, served: ServedModel, within: float | None = None) -> ServedModel:
        """The same with its manifest, if the server tells it, and whether the server batches requests."""
        if served.version not in self._told:
            self._told[served.version] = self._ask_manifest(served, within)
        return self._told[served.version]

    def _ask_manifest(self, served: ServedModel, within: float | None) -> ServedModel:
        if MANIFEST_SIGNATURE not in served.signatures:
            return served
        try:
            # A model whose rows are all independent may be batched, and tells a manifest for each of several keys.
            rank = len(served.signatures[MANIFEST_SIGNATURE].inputs["key"].shape or ())
            key = np.array([""] * rank if rank else "", object)
            answer = self.send(served.pinned, MANIFEST_SIGNATURE, {"key": key}, within=within)
        except ServingError as error:
            if "Batching Run()" in error.answer:  # which a scalar input does not pass
                return dataclasses.replace(served, batched=True)
            raise
        text = np.asarray(next(iter(answer.outputs.values()))).item()
        return dataclasses.replace(served, manifest=json.loads(text), batched=None if rank else False)

    def signature(self, served: ServedModel, name: str) -> SignatureSpec:
        """A signature of what is served."""
        if name not in served.signatures:
            raise ServingError(
                f"{served.name!r} version {served.version} on {self.transport.address} has no signature {name!r}: "
                f"expected one of {', '.join(served.signatures)}. Export with it in export.signatures.",
                "FAILED_PRECONDITION",
            )
        return served.signatures[name]

    def send(
        self,
        ref: ModelRef,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        stop: threading.Event | None = None,
        within: float | None = None,
    ) -> Prediction:
        """The answer to one request, which is repeated while that may help, unless `stop` is set.

        Args:
          ref: the model.
          signature: to call.
          inputs: by the signature's names.
          stop: set by another thread to end the repetitions.
          within: seconds, if they are fewer than the connection's deadline.
        """
        answer = self._retried(lambda timeout: self.transport.predict(ref, signature, inputs, timeout), stop, within)
        served = self._served
        if ref == self.ref and served is not None and answer.version not in (None, served.version):
            self._served = None  # another version has come; it may have other signatures
        return answer

    def status(self) -> list[VersionStatus]:
        """The states of the model's versions."""
        return self._retried(lambda timeout: self.transport.status(ModelRef(self.ref.name), timeout))

    def wait_until_ready(self, timeout: float, manifest: bool = True) -> ServedModel:
        """Waits until the model is available, and returns its metadata; raises if it is not after so many seconds.

        The model itself is asked only for its `manifest`.
        """
        end = time.monotonic() + timeout
        while True:
            left = max(end - time.monotonic(), 1e-3)
            try:
                states = self.transport.status(ModelRef(self.ref.name, self.ref.version), min(left, 10.0))
                self._reached = True
                if any(s.state == "AVAILABLE" for s in states):
                    served = self.served(refresh=True, within=left)
                    left = max(end - time.monotonic(), 1e-3)
                    return self.with_manifest(served, within=left) if manifest else served
                seen = f"the versions are {', '.join(map(str, states)) or 'none'}"
                if states and all(s.state == "END" and s.error for s in states):
                    raise ServingError(f"No version of {self.ref} could be loaded: {seen}.", "FAILED_PRECONDITION")
            except ServingError as error:
                if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND"):
                    raise
                seen = str(error)
            if time.monotonic() + _POLL >= end:
                raise ServingError(f"{self.ref} is not ready after {timeout:g} s: {seen}", "DEADLINE_EXCEEDED")
            time.sleep(_POLL)

    def _retried(
        self, send: Callable[[float | None], T], stop: threading.Event | None = None, within: float | None = None
    ) -> T:
        deadline = min((seconds for seconds in (self._deadline, within) if seconds is not None), default=None)
        try:
            result = with_retries(send, deadline, give_up=self._seems_absent, stop=stop)
        except ServingError as error:
            self._reached |= error.code != "UNAVAILABLE"
            raise self._with_versions(error) if error.code == "NOT_FOUND" else error from None
        self._reached = True
        return result

    def _seems_absent(self, error: ServingError) -> bool:
        """Whether there never was a server at this address."""
        return error.code == "UNAVAILABLE" and not self._reached

    def _with_versions(self, error: ServingError) -> ServingError:
        """A NOT_FOUND with the versions that there are."""
        try:
            states = self.transport.status(ModelRef(self.ref.name), 5.0)
        except ServingError:
            return ServingError(f"{error} The server has no model of that name.", error.code, error.answer)
        return ServingError(f"{error} There are versions {', '.join(map(str, states))}.", error.code, error.answer)
