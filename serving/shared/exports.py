"""What exports wrote into a model base directory: versions, and the manifest of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BUNDLE = (
    "serving"  # what ntk-bundle writes into a base directory; no number, so that servers do not take it for a version
)
MANIFEST = Path("assets.extra/ntk_manifest.json")  # in a version's directory

_MOST = (1 << 63) - 1  # as in TF Serving
_SECTIONS = {
    "model": str,
    "created": str,
    "platforms": list,
    "inputs": list,
    "variables": dict,
    "configuration": dict,
    "verification": dict,
    "versions": dict,
}


def are_answers(manifest: Mapping[str, Any]) -> bool:
    """Whether it is of what `ntk-fit` wrote: all its signatures have independent rows, and may be batched as it is."""
    return "answers" in manifest


class ManifestError(Exception):
    """A manifest that is not there or damaged; its text is shown as it is."""


def version_number(name: str) -> int | None:
    """The number of the version that a directory of this name is; None if servers do not take it for one."""
    if not (name.isascii() and name.isdigit()) or int(name) > _MOST:
        return None
    return int(name)


def version_directories(base_dir: Path) -> list[Path]:
    """The directories with a version's name, by number; none if there is no such base directory.

    Raises:
      OSError: the base directory cannot be read.
    """
    if not base_dir.is_dir():
        return []
    numbered = [(number, p) for p in base_dir.iterdir() if (number := version_number(p.name)) is not None]
    return [path for _, path in sorted(numbered) if path.is_dir()]


def read_manifest(version: Path) -> dict[str, Any]:
    """The manifest of a version.

    Raises:
      ManifestError: there is none, or it is damaged.
    """
    path = version / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"expected {path}, found none: this SavedModel was not written by ntk-export") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} is damaged: {error}. Export again") from error
    if not isinstance(manifest, dict):
        raise ManifestError(f"{path} is damaged: expected an object, found {type(manifest).__name__}. Export again")
    missing = [key for key, kind in _SECTIONS.items() if not isinstance(manifest.get(key), kind)]
    if missing:
        raise ManifestError(f"{path} is damaged: it lacks {', '.join(missing)}. Export again")
    return manifest
