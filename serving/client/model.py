"""What is served, as its metadata and its manifest say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

MANIFEST_SIGNATURE = "ntk_manifest"


@dataclasses.dataclass(frozen=True)
class ModelRef:
    """Which model to ask: its latest version, or one by number or by label."""

    name: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        """As messages name it."""
        if self.version is not None:
            return f"model {self.name!r} version {self.version}"
        return f"model {self.name!r}" + (f" label {self.label!r}" if self.label else "")


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output: shape with None for sizes that may vary (None as a whole if unknown), dtype as DT_FLOAT."""

    shape: tuple[int | None, ...] | None
    dtype: str

    def __str__(self) -> str:
        """As messages show it: float32 (n, 28, 28)."""
        name = self.dtype.removeprefix("DT_").lower()
        name = {"float": "float32", "double": "float64", "half": "float16"}.get(name, name)
        if self.shape is None:
            return f"{name} of any shape"
        dims = ", ".join("n" if d is None else str(d) for d in self.shape)
        return f"{name} ({dims}{',' if len(self.shape) == 1 else ''})"


@dataclasses.dataclass(frozen=True)
class SignatureSpec:
    """The inputs and outputs of a signature, by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def side(self, side: str) -> dict[str, TensorSpec]:
        """The inputs of a batch of examples, x1, x2 or x: itself, or for a model with several inputs x1_<name>."""
        if side in self.inputs:
            return {side: self.inputs[side]}
        return {name: spec for name, spec in self.inputs.items() if name.startswith(f"{side}_")}


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A version that a server has.

    Attributes:
      name: of the model.
      version: its number.
      signatures: by name.
      manifest: the content of its `ntk_manifest.json`; None if the server does not tell: an export without the
        signature `ntk_manifest`, or a server that batches requests.
      batched: whether the server joins requests of several callers (--enable_batching); None if it cannot be told.
    """

    name: str
    version: int
    signatures: Mapping[str, SignatureSpec]
    manifest: Mapping[str, Any] | None = None
    batched: bool | None = None

    @property
    def pinned(self) -> ModelRef:
        """Exactly this version."""
        return ModelRef(self.name, self.version)

    @property
    def coupled(self) -> bool | None:
        """Whether the examples of a batch influence each other, so that it must not be split; None if unknown."""
        if self.manifest is None:
            return None
        return self.manifest["configuration"]["ntk"]["vmap_axes"] is None

    @property
    def swap(self) -> tuple[int, ...] | None:
        """The permutation of the kernel's axes that makes K(x1, x2) of K(x2, x1); None if unknown."""
        spec = next((s.outputs["ntk"] for s in self.signatures.values() if {"x1", "x2"} <= _sides(s)), None)
        if spec is not None and spec.shape is not None and len(spec.shape) == 2:
            return 1, 0
        swap = (self.manifest or {}).get("kernel", {}).get("swap")
        return None if swap is None else tuple(swap)

    @property
    def input_names(self) -> dict[str, str] | None:
        """For the name of each of the model's inputs, in its own order, that of a signature's: x or x_<name>."""
        return None if self.manifest is None else {spec["name"]: spec["input"] for spec in self.manifest["inputs"]}

    @property
    def param_names(self) -> dict[str, str] | None:
        """For the path of each trainable variable the name of its input of `ntk_with_params`; None if unknown."""
        if self.manifest is None:
            return None
        return {path: spec["input"] for path, spec in self.manifest["variables"]["trainable"].items()}


def _sides(signature: SignatureSpec) -> set[str]:
    return {name.split("_")[0] for name in signature.inputs if "ntk" in signature.outputs}


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of a version: START, LOADING, AVAILABLE, UNLOADING or END, and the error that ended it, if any."""

    version: int
    state: str
    error: str = ""

    def __str__(self) -> str:
        """As messages show it."""
        return f"{self.version} {self.state}" + (f" ({self.error.splitlines()[0]})" if self.error else "")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a signature answered.

    Attributes:
      outputs: by name.
      version: that answered; None if the protocol does not tell (REST).
      as_content: whether numbers came as the bytes that they are in memory, which only servers with
        --enable_serialization_as_tensor_content write; None if the protocol does not tell (REST).
    """

    outputs: Mapping[str, Any]
    version: int | None
    as_content: bool | None = None
