"""The next version under a base directory, with what goes wrong as errors of an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from exporter.errors import ExportError
from serving.shared import staging


@contextlib.contextmanager
def stage_version(base_dir: Path) -> Iterator[staging.Staging]:
    """`staging.stage_version` of exports.

    Raises:
      ExportError: `base_dir` is not a directory, or cannot be written to.
    """
    try:
        with staging.stage_version(base_dir, "ntk-export") as staged:
            yield staged
    except staging.StagingError as error:
        raise ExportError(str(error)) from error
