"""Batching by TF Serving of the signatures that survive it, and of no others.

TF Serving joins the requests of several callers along axis 0, for every signature of a model that it batches. Kernels
of pairs do not survive that: a caller would get columns of another's examples. So a version that has such signatures
is never batched, and those whose row i depends on example i alone are served a second time, as a model that has no
others.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serving.shared import batching_parameters
from serving.shared.exports import read_manifest

DIRECTORY = "rowwise"  # the base directory of that model, in the bundle
ROWWISE = ("ntk_diagonal", "ntk_features", "forward")
_OTHERS = shutil.ignore_patterns("saved_model.pb", "fingerprint.pb", "assets.extra")  # which differ


class BatchingError(Exception):
    """An export that cannot be batched; its text is shown as it is."""


def write_rowwise(version: Path, target: Path) -> None:
    """Writes the version of the row-wise model that belongs to an exported version, unless it is there already.

    It has the same graph and variables (hard links where the file system has them), but only the signatures of ROWWISE.

    Args:
      version: the exported version's directory.
      target: the directory to write, with a version number for a name.

    Raises:
      BatchingError: the export has no signature that could be batched.
      ManifestError: its manifest is damaged.
    """
    from serving.shared.tensorflow_names import saved_model_pb2
    from serving.shared.warmup_file import write_requests

    manifest = read_manifest(version)
    names = [name for name in ROWWISE if name in manifest["configuration"]["export"]["signatures"]]
    if manifest["configuration"]["ntk"]["vmap_axes"] is None:
        raise BatchingError(
            f"{version} cannot be batched: its examples influence each other (ntk.vmap_axes: null), so that nobody's "
            "rows would be what they are alone"
        )
    if not names:
        raise BatchingError(f"{version} cannot be batched: expected a signature of {', '.join(ROWWISE)}, found none")
    if target.exists():
        if _made_of(version, target):
            return
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as directory:
        staging = Path(directory) / "version"
        shutil.copytree(version, staging, copy_function=_link, ignore=_OTHERS)
        model = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
        (graph,) = model.meta_graphs
        for name in [n for n in graph.signature_def if n not in names and not n.startswith("__")]:
            del graph.signature_def[name]
        (staging / "saved_model.pb").write_bytes(model.SerializeToString())
        (staging / batching_parameters.FILE).write_text(str(batching_parameters.of_rows()), encoding="utf-8")
        write_requests(staging, _warmup(version, {name: graph.signature_def[name] for name in names}))
        staging.rename(target)


def _made_of(version: Path, target: Path) -> bool:
    """Whether a row-wise version was made of this version, not of one that had its number before."""
    made, exported = ((path / "saved_model.pb").stat().st_mtime for path in (target, version))
    if made < exported:
        return False
    files = [p.relative_to(version) for p in version.glob("variables/*")]
    return all((target / p).is_file() and filecmp.cmp(version / p, target / p) for p in files)


def _warmup(version: Path, signatures: Mapping[str, Any]) -> Iterator[Any]:
    """A request of each allowed size for each signature: what the version itself is asked for, or else zeros.

    Of texts, which cannot be anything, there is no request if the version has none.
    """
    import tensorflow as tf

    from serving.shared.warmup_file import read_requests, request_of_one_value

    own: dict[str, Any] = {}
    for request in read_requests(version):
        own.setdefault(request.model_spec.signature_name, request)  # the first, which has an example
    for name, signature in signatures.items():
        specs = {
            key: tf.TensorSpec([max(d.size, 1) for d in info.tensor_shape.dim], tf.as_dtype(info.dtype))
            for key, info in signature.inputs.items()
        }
        if name not in own and any(spec.dtype == tf.string for spec in specs.values()):
            continue
        request = own.get(name) or request_of_one_value(name, specs)
        for size in batching_parameters.SIZES:
            for proto in request.inputs.values():
                proto.tensor_shape.dim[0].size = size
            yield request


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target
