"""XLA's persistent cache: what one server compiled, read by the next one that starts.

TensorFlow reads the directory from TF_XLA_FLAGS once, before it compiles anything, and trusts it: if it cannot be
written to, or an entry was cut off, every request that compiles fails; and an entry that another version of TensorFlow
wrote, or one for another processor, is run all the same. So each program and kind of processor has a directory of its
own, which is checked before it is named. Only what is compiled for CPUs is kept: for GPUs it holds for one GPU and
driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

VARIABLE = "TF_XLA_FLAGS"
DIRECTORY = "xla_cache"  # beside a bundle's files
IN_CONTAINER = "/xla_cache"  # where a volume is mounted
# The last one lacks its value.
FLAGS = "--tf_xla_persistent_cache_device_types=CPU --tf_xla_persistent_cache_directory"


def xla_flags(directory: str, others: str = "") -> str:
    """The value of TF_XLA_FLAGS for a cache in this directory.

    Args:
      directory: that can be written to.
      others: flags that there are already; where they say something else, they hold. They may name a file of flags
        instead, and then nothing can be added to them.
    """
    if others.strip() and not others.strip().startswith("-"):
        return others
    quoted = re.sub(r'["\\]', r"\\\g<0>", directory)
    return f'{FLAGS}="{quoted}" {others}'.rstrip()  # of a flag that comes twice the last counts


def writable_directory(parent: Path, program: Path) -> Path | None:
    """The directory in `parent` for what a program compiles on this machine, made if need be; None if it cannot be.

    Args:
      parent: of the directories of all programs.
      program: a file that changes when it is replaced by another version. Its size and time name the directory, with a
        digest of what this processor can do; `serve.sh` writes the same name.
    """
    with contextlib.suppress(OSError):
        status = program.stat()
        directory = parent / f"{status.st_size}-{int(status.st_mtime)}-{_processor()}"
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK | os.X_OK):
            return directory
    return None


def in_container(image: str) -> str:
    """The directory for what the server of a container image compiles."""
    return f"{IN_CONTAINER}/{re.sub(r'[^A-Za-z0-9_.]+', '-', image)}"


def _processor() -> str:
    lines: list[bytes] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines(keepends=True)
    features = next((line for line in lines if re.match(rb"flags|features", line, re.IGNORECASE)), b"")
    return hashlib.sha256(features).hexdigest()[:8]
