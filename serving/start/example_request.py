"""A curl line that works for a served model, made from the metadata that its server gives."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

_SIGNATURES = ("ntk_diagonal", "ntk_symmetric", "forward", "serving_default")  # those with one input first
_LONGEST = 600  # characters
_TEXT = ("DT_STRING", "DT_BOOL")


def fetch_metadata(rest_address: str, model_name: str, seconds: float = 10.0) -> Mapping[str, Any]:
    """What GET /v1/models/NAME/metadata answers.

    Raises:
      OSError: if the server cannot be reached or answers with an error.
    """
    url = f"http://{rest_address}/v1/models/{model_name}/metadata"
    with urllib.request.urlopen(url, timeout=seconds) as response:
        metadata: Mapping[str, Any] = json.load(response)
    return metadata


def curl_line(rest_address: str, model_name: str, metadata: Mapping[str, Any]) -> str:
    """Asks for a kernel of zeros, or for the metadata if the model's inputs are too large for a command line."""
    url = f"http://{rest_address}/v1/models/{model_name}"
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    name = next((name for name in _SIGNATURES if name in signatures), None)
    if name is not None:
        inputs = {alias: _zeros(info) for alias, info in sorted(signatures[name]["inputs"].items())}
        if all(value is not None for value in inputs.values()):
            value = next(iter(inputs.values())) if len(inputs) == 1 else inputs
            body = json.dumps({"signature_name": name, "inputs": value}, separators=(",", ":"))
            line = f"curl -s -d '{body}' {url}:predict"
            if len(line) <= _LONGEST:
                return line
    return f"curl -s {url}/metadata"


def _zeros(info: Mapping[str, Any]) -> Any:
    """One example of zeros as nested lists; None if the shape is not known, too large, or not of numbers."""
    shape = info["tensor_shape"]
    sizes = [int(dim["size"]) for dim in shape.get("dim", ())]
    if shape.get("unknown_rank") or info["dtype"] in _TEXT or any(size < 0 for size in sizes[1:]):
        return None
    value: Any = 0
    count = 1
    for size in reversed([1, *sizes[1:]] if sizes else []):
        count *= size
        if count > _LONGEST:
            return None
        value = [value] * size
    return value
