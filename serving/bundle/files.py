"""Writes the bundle beside the versions, again when something changed, but never over what was changed by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from serving.bundle import batching
from serving.bundle.contents import BundleError, BundleOptions, bundle_files
from serving.shared.exports import BUNDLE, MANIFEST, are_answers, read_manifest, version_directories, version_number
from serving.shared.model_server import HARMFUL

_RECORD = "bundle.json"  # what was written, for the next time


def default_options(base_dir: Path) -> BundleOptions:
    """Those of the bundle that is there; without one the model is named as the directory.

    Raises:
      BundleError: what the bundle says of itself is damaged.
    """
    record = _read_record(base_dir / BUNDLE / _RECORD)
    if record is not None:
        return record.options
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", base_dir.absolute().name).strip("-._") or "ntk"
    return BundleOptions(name, batched=(base_dir / BUNDLE / batching.DIRECTORY).is_dir())


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a bundle was made with, and the digest of each file as it was written."""

    options: BundleOptions
    digests: Mapping[str, str]


def _read_record(path: Path) -> _Record | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _Record(BundleOptions(**content["options"]), dict(content["digests"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error!r}. Remove it, and give the flags again") from None


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
      directory: of its files.
      kept: the files that are as somebody changed them since they were written; for each what is wrong with it, if
        anything is.
    """

    directory: Path
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write_bundle(base_dir: Path, options: BundleOptions) -> Bundle:
    """Writes the files into a directory in a model base directory, except those that somebody has changed there.

    The model for batched requests is written there too, for every version, if `options.batched`; but not of answers,
    which are batched as they are.

    Raises:
      BundleError: there is no export in `base_dir`.
      BatchingError: it cannot be batched.
      ManifestError: the manifest of a version is damaged.
      OSError: a file cannot be written.
    """
    versions = exported_versions(base_dir)
    manifest = read_manifest(versions[-1])
    directory = base_dir / BUNDLE
    directory.mkdir(exist_ok=True)
    if options.batched and not are_answers(manifest):
        for version in versions:
            batching.write_rowwise(version, directory / batching.DIRECTORY / version.name)
        for made in (directory / batching.DIRECTORY).iterdir():
            if version_number(made.name) is not None and made.name not in {version.name for version in versions}:
                shutil.rmtree(made)
    record = _read_record(directory / _RECORD)
    before = record.digests if record is not None else {}
    digests, kept = {}, {}
    for name, text in bundle_files(manifest, options).items():
        path = directory / name
        if name in before and path.exists() and _digest(path.read_bytes()) != before[name]:
            digests[name] = before[name]
            kept[name] = _harm(path)
        else:
            digests[name] = _digest(text.encode())
            _replace(path, text, executable=name.endswith(".sh"))
    content = {"options": dataclasses.asdict(options), "digests": digests}
    _replace(directory / _RECORD, json.dumps(content, indent=2) + "\n", executable=False)
    return Bundle(directory, kept)


def _harm(path: Path) -> str:
    """What is wrong with a file that somebody changed; empty if nothing is."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return "; ".join(
        f"a server with its flag --{flag} {what}: take the flag out of it"
        for flag, what in HARMFUL.items()
        if any(f"--{flag}" in line and f"--{flag}=false" not in line for line in lines)
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def exported_versions(base_dir: Path) -> list[Path]:
    """The versions that exports wrote into a base directory, by number.

    Raises:
      BundleError: there are none.
    """
    found = [path for path in version_directories(base_dir) if (path / MANIFEST).is_file()]
    if not found:
        raise BundleError(
            f"expected a model base directory that ntk-export wrote, with versions 1, 2, ..., received {base_dir}"
        )
    return found


def _replace(path: Path, text: str, *, executable: bool) -> None:
    """Writes a file at once: whoever reads it meanwhile sees the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o755 if executable else 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
