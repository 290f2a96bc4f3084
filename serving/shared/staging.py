"""Version directories under a base directory, written beside it and renamed into place: no partial one is seen."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.shared.exports import version_number


class StagingError(Exception):
    """A base directory that cannot be written to; its text is shown as it is."""


class Staging:
    """A directory to write a version into.

    Attributes:
      path: the directory, empty at first; what it holds becomes the version.
    """

    def __init__(self, base_dir: Path, path: Path) -> None:
        """Makes `path` the staging of a version of `base_dir`."""
        self._base_dir = base_dir
        self.path = path

    def publish(self) -> Path:
        """Renames the directory to the next version of the base directory, and returns that version's path."""
        missing = [p for p in (self._base_dir, *self._base_dir.parents) if not p.exists()]
        try:
            self._base_dir.mkdir(parents=True, exist_ok=True)
            return self._rename()
        except BaseException:
            for directory in missing:
                with contextlib.suppress(OSError):  # it is no longer empty, or was not made
                    directory.rmdir()
            raise

    def _rename(self) -> Path:
        version = max((version_number(p.name) or 0 for p in self._base_dir.iterdir()), default=0) + 1
        while True:
            target = self._base_dir / str(version)
            try:
                os.rename(self.path, target)
            except OSError as error:  # another export took this number
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                version += 1
            else:
                return target


@contextlib.contextmanager
def stage_version(base_dir: Path, command: str) -> Iterator[Staging]:
    """A `Staging` for the next version under `base_dir`, whose directory is gone afterwards unless it was published.

    It lies beside `base_dir`, where a rename into it is atomic, under a hidden name; if `base_dir` does not exist yet
    its nearest existing parent holds it; if that cannot be written to or is another file system, `base_dir` itself.
    What was left there by a process that was killed is removed first: its directory's lock is free.

    Args:
      base_dir: model base directory.
      command: which writes it; part of the hidden name.

    Raises:
      StagingError: `base_dir` is not a directory, or none of these can be written to.
    """
    base_dir = Path(os.path.abspath(base_dir))
    parent = writable_directory(base_dir)
    prefix = f".{base_dir.name}.{command}-"
    for left_over in parent.glob(f"{prefix}*"):
        _remove_if_unlocked(left_over)
    path, lock = _locked_directory(parent, prefix)
    try:
        version = path / "version"
        version.mkdir()
        yield Staging(base_dir, version)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked_directory(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory and the descriptor of its lock, which tells other exports that it is not a left-over."""
    while True:
        try:
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except FileNotFoundError as error:  # in /proc and its like
            raise StagingError(
                f"The output directory cannot be written to: expected one that takes directories, received {parent}. "
                "Choose another --output."
            ) from error
        with contextlib.suppress(FileNotFoundError):  # another export took it for a left-over before it was locked
            lock = _lock(path)
            if lock is not None and path.exists():
                return path, lock


def writable_directory(base_dir: Path) -> Path:
    """Where a version of a base directory, which need not exist, is written: beside it, above it, or in it.

    Raises:
      StagingError: there is no such place.
    """
    existing = next(p for p in (base_dir, *base_dir.parents) if p.exists())
    if not existing.is_dir():
        raise StagingError(
            f"The output is not a directory: expected a model base directory, received {base_dir}, where {existing} is "
            "a file. Choose another --output."
        )
    candidates = [existing]
    if existing == base_dir and existing.stat().st_dev == existing.parent.stat().st_dev:
        candidates.insert(0, existing.parent)
    if os.access(existing, os.W_OK | os.X_OK):  # without that the last rename fails, wherever the staging lies
        for candidate in candidates:
            if os.access(candidate, os.W_OK | os.X_OK):
                return candidate
    raise StagingError(
        f"The output directory cannot be written to: expected write permission, received {existing}, which is not "
        "writable for this user. Choose another --output or change the permissions."
    )


def _lock(path: Path) -> int | None:
    """An exclusive lock on a directory, held until its descriptor is closed; None if another process holds it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_if_unlocked(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = _lock(path)
        if descriptor is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
