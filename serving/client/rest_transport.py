"""TF Serving's REST API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import urllib3

from serving.client import tensors
from serving.client.errors import closed, explain
from serving.client.model import ModelRef, Prediction, ServedModel, SignatureSpec, TensorSpec, VersionStatus

# TF Serving's HTTP status for each kind of error, backwards; 400 is also FAILED_PRECONDITION.
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "UNAVAILABLE",  # the request was not received, and may be sent again
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CONNECTIONS = 256  # that are kept for further requests; what threads beyond these open is closed after use
_BYTES_PER_NUMBER = 26  # "-1.2345678901234567e-123, "


class RestTransport:
    """A pool of connections to http://host:port; `Transport` documents the methods."""

    tells_version = False

    def __init__(self, address: str) -> None:
        """Opens no connection yet.

        Args:
          address: http://host:port or https://host:port, with a path before /v1 if a proxy adds one.
        """
        self.address = address.rstrip("/")
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS, block=False, retries=False)
        self._closed = False

    def predict(
        self, model: ModelRef, signature: str, inputs: Mapping[str, np.ndarray], timeout: float | None
    ) -> Prediction:
        """Calls a signature, in the column format."""
        body = {"signature_name": signature, "inputs": {name: tensors.as_json(array) for name, array in inputs.items()}}
        about = f"{model} signature {signature!r}"
        answer = self._call("POST", f"{_path(model)}:predict", timeout, about, body)["outputs"]
        # TF Serving names outputs only if there are several; {"b64": ...} is a text.
        named = answer if isinstance(answer, dict) and answer.keys() != {"b64"} else {"": answer}
        return Prediction({name: np.asarray(value) for name, value in named.items()}, None)

    def metadata(self, model: ModelRef, timeout: float | None) -> ServedModel:
        """The version that answers for `model`, and its signatures."""
        answer = self._call("GET", f"{_path(model)}/metadata", timeout, str(model))
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        return ServedModel(
            model.name,
            int(answer["model_spec"]["version"]),
            {
                name: SignatureSpec(
                    *({k: _tensor_spec(t) for k, t in s[side].items()} for side in ("inputs", "outputs"))
                )
                for name, s in sorted(signatures.items())
                if not name.startswith("__")
            },
        )

    def status(self, model: ModelRef, timeout: float | None) -> list[VersionStatus]:
        """The states of the model's versions."""
        answer = self._call("GET", _path(model), timeout, str(model))
        return [
            VersionStatus(int(v["version"]), v["state"], v.get("status", {}).get("error_message", ""))
            for v in answer["model_version_status"]
        ]

    def encoded_size(self, dtype: np.dtype, length: int = 0) -> int:
        """Bytes of one number in decimal, or of a text in base64."""
        return _BYTES_PER_NUMBER + 4 * length // 3

    def close(self) -> None:
        """Closes the connections that are not in use, and opens no others."""
        self._closed = True
        self._pool.clear()

    def _call(self, method: str, path: str, timeout: float | None, about: str, body: Any = None) -> Any:
        if self._closed:
            raise closed(self.address)
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        try:
            response = self._pool.request(
                method,
                f"{self.address}/v1/models/{path}",
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(total=timeout),
            )
            text = response.data.decode("utf-8", "replace")
        except urllib3.exceptions.TimeoutError as error:
            code = "UNAVAILABLE" if isinstance(error, urllib3.exceptions.ConnectTimeoutError) else "DEADLINE_EXCEEDED"
            raise explain(code, str(error), address=self.address, about=about) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise explain("UNAVAILABLE", _reason(error), address=self.address, about=about) from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if response.status != 200 or not isinstance(answer, dict):
            words = answer.get("error", text) if isinstance(answer, dict) else text
            code = _CODES.get(response.status, "INTERNAL")
            # TF Serving has nothing to say on a version that it cannot read as a number.
            told = response.status == 200 or isinstance(answer, dict)
            shown = words if told else f"HTTP {response.status}: {words or 'no words'}"
            raise explain(code, str(shown), address=self.address, about=about)
        return answer


def _path(model: ModelRef) -> str:
    name = quote(model.name, safe="")
    if model.version is not None:
        return f"{name}/versions/{model.version}"
    return f"{name}/labels/{quote(model.label, safe='')}" if model.label else name


def _tensor_spec(info: Mapping[str, Any]) -> TensorSpec:
    shape = info["tensor_shape"]
    dims = None if shape["unknown_rank"] else tuple(int(d["size"]) for d in shape["dim"])
    return TensorSpec(None if dims is None else tuple(None if d < 0 else d for d in dims), info["dtype"])


def _reason(error: Exception) -> str:
    """'[Errno 111] Connection refused' out of what urllib3 makes of it."""
    cause = getattr(error, "reason", None) or error.__cause__ or error
    return str(cause).rpartition(": ")[2] if "Errno" in str(cause) else str(cause)
