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

from google.protobuf import text_format

from serving.shared.exports import read_manifest
from serving.shared.protos import message_classes

DIRECTORY = "rowwise"  # the base directory of that model, in the bundle
PARAMETERS_FILE = "batching_params.pbtxt"  # in a version's directory, read with --enable_per_model_batching_parameters
ROWWISE = ("ntk_diagonal", "forward")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of batches; the warmup calls each of them

_WAIT_MICROSECONDS = 500  # for further requests, while a thread is free
_QUEUE = 64  # batches
_OTHERS = shutil.ignore_patterns("saved_model.pb", "fingerprint.pb", "assets.extra")  # which differ


# tensorflow-serving-api does not have it (session_bundle_config.proto).
_BatchingParameters = message_classes(
    {
        "Int64Value": {"value": (1, "int64")},
        "StringValue": {"value": (1, "string")},
        "BatchingParameters": {
            "max_batch_size": (1, "Int64Value"),
            "batch_timeout_micros": (2, "Int64Value"),
            "max_enqueued_batches": (3, "Int64Value"),
            "num_batch_threads": (4, "Int64Value"),
            "thread_pool_name": (5, "StringValue"),
            "allowed_batch_sizes": (6, "[]int64"),
        },
    }
)["BatchingParameters"]


class BatchingError(Exception):
    """An export that cannot be batched; its text is shown as it is."""


def shared_parameters(threads: int) -> str:
    """The BatchingParameters of a server, in text format: the threads that all batched models share."""
    message = _BatchingParameters()
    message.num_batch_threads.value = threads
    message.thread_pool_name.value = "batching"
    return text_format.MessageToString(message)


def model_parameters() -> str:
    """The BatchingParameters of the row-wise model, in text format."""
    message = _BatchingParameters()
    message.max_batch_size.value = SIZES[-1]
    message.batch_timeout_micros.value = _WAIT_MICROSECONDS
    message.max_enqueued_batches.value = _QUEUE
    message.allowed_batch_sizes.extend(SIZES)
    return text_format.MessageToString(message)


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
        (staging / PARAMETERS_FILE).write_text(model_parameters(), encoding="utf-8")
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
        for size in SIZES:
            for proto in request.inputs.values():
                proto.tensor_shape.dim[0].size = size
            yield request


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target
