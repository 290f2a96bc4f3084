"""The export that a job asks: which version, what its kernel is, and its digest."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.dataset.errors import DatasetError
from serving.shared.exports import ManifestError, read_manifest, version_directories


@dataclasses.dataclass(frozen=True)
class Export:
    """A version of an export.

    Attributes:
      path: of its SavedModel.
      manifest: what the export recorded.
      digest: of its graph and variables.
    """

    path: Path
    manifest: dict[str, Any]
    digest: str

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The model's, as the manifest has them."""
        return self.manifest["inputs"]

    @property
    def signatures(self) -> Sequence[str]:
        """Names of what can be asked."""
        return self.manifest["configuration"]["export"]["signatures"]

    @property
    def axes(self) -> dict[str, Any]:
        """Of the kernel: over which output axes it is a mean, of which it is the diagonal, and those it keeps."""
        ntk = self.manifest["configuration"]["ntk"]
        kept = self.manifest["kernel"]["shape"][2:]
        return {"trace": list(ntk["trace_axes"]), "diagonal": list(ntk["diagonal_axes"]), "kept": list(kept)}


def features_shape(manifest: Mapping[str, Any]) -> tuple[int, ...]:
    """Of an example's features, of an export that has them: the output axes that are not averaged over, and D."""
    shape = manifest["output"]["shape"]
    traced = {axis % len(shape) for axis in manifest["configuration"]["ntk"]["trace_axes"]}
    kept = (size for axis, size in enumerate(shape) if axis and axis not in traced)
    return *kept, manifest["configuration"]["export"]["features"]["dimensions"]


def find_export(path: str | Path, needed: str) -> Export:
    """The version in that directory, or the newest below that base directory.

    Args:
      path: of either.
      needed: a signature that it must have.

    Raises:
      DatasetError: there is none, or it lacks the signature, or its examples influence each other.
    """
    path = Path(path).expanduser().absolute()
    versions = [path] if (path / "saved_model.pb").is_file() else version_directories(path)
    if not versions:
        raise DatasetError(f"Expected an export in {str(path)!r}, found none. Give the --output of ntk-export.")
    try:
        export = Export(versions[-1], read_manifest(versions[-1]), digest_of(versions[-1]))
    except (ManifestError, OSError) as error:
        raise DatasetError(str(error)) from error
    if export.manifest["configuration"]["ntk"]["vmap_axes"] is None:
        raise DatasetError(
            f"{export.path}: expected independent examples, which can be taken in parts; those of this export "
            "influence each other (ntk.vmap_axes: null)."
        )
    if needed not in export.signatures:
        raise DatasetError(
            f"{export.path}: expected the signature {needed!r}, found {', '.join(export.signatures)}. Export again "
            "with it in export.signatures."
        )
    return export


def digest_of(version: Path) -> str:
    """Of the graph, the variables and the assets that they read; not of what the manifest says about them."""
    digest = hashlib.sha256()
    files = [version / "saved_model.pb", *version.glob("variables/*"), *version.glob("assets/*")]
    for file in sorted(files):
        if file.name.startswith("ntk_manifest"):
            continue
        digest.update(f"{file.relative_to(version)} {file.stat().st_size} ".encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()
