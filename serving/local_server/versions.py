"""Which versions there are in a base directory, and which of them are to be served."""

from __future__ import annotations

import pathlib

from serving.local_server.options import ModelOptions
from serving.shared.exports import version_number

# What a SavedModel is made of; when none of it changes any more, it has been written.
_PARTS = ("saved_model.pb", "saved_model.cpb", "fingerprint.pb", "variables/*", "assets/*", "assets.extra/*")

Fingerprint = tuple[tuple[str, int, int], ...]


def on_disk(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Directories whose names are numbers, of 64 bits at most as in TF Serving, by number.

    Raises:
      OSError: if the base directory cannot be read.
    """
    found: dict[int, pathlib.Path] = {}
    for child in sorted(base_path.iterdir()):
        number = version_number(child.name)
        if number is not None and child.is_dir():
            found[number] = child
    return found


def aspired(found: dict[int, pathlib.Path], options: ModelOptions) -> dict[int, pathlib.Path]:
    """Those of the versions found that the options ask for, newest first."""
    newest_first = sorted(found, reverse=True)
    chosen = (
        [version for version in newest_first if version in options.versions]
        if options.versions
        else newest_first[: options.num_versions]
    )
    return {version: found[version] for version in chosen}


def fingerprint(path: pathlib.Path) -> Fingerprint:
    """Changes whenever a version's files do: their names, sizes and times of change."""
    files = []
    for pattern in _PARTS:
        for file in sorted(path.glob(pattern)):
            try:
                stat = file.stat()
            except OSError:  # removed meanwhile
                continue
            files.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(files)
