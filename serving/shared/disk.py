"""What writing takes, and why it failed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def size_of(path: Path) -> int:
    """Bytes of all files under a directory."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@contextlib.contextmanager
def disk_errors(told: Callable[[str], Exception]) -> Iterator[None]:
    """Errors of writing, which Python and TensorFlow report differently, as told(reason); others pass through."""
    import tensorflow as tf

    try:
        yield
    except OSError as error:
        if error.errno in _OF_DISKS:
            raise told(str(error.strerror)) from error
        raise
    except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError, tf.errors.OutOfRangeError) as error:
        # "...{node} /path/of/the/file; File too large [Op:SaveV2]": EFBIG is out of range to TF.
        raise told(error.message.rpartition("; ")[2].partition(" [Op:")[0]) from error
