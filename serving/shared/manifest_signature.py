"""Where the manifest is kept: a file for people, and a signature by which a running server tells it.

TF Serving shows of a model its signatures' shapes and nothing else. A client must know more: whether a batch may be
split, which axes of the kernel belong together, what to check results against. So the SavedModel has a signature
`ntk_manifest`, which returns what `assets.extra/ntk_manifest.json` holds. Its input is a scalar, which TF Serving's
batching refuses: called among the warmup requests it keeps a server that would join callers' rows from ever serving it.
A SavedModel whose rows are all independent has one input for each row there too, and may be batched.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from serving.shared.exports import MANIFEST

SIGNATURE = "ntk_manifest"
_TABLE = Path("assets/ntk_manifest.tsv")


@contextlib.contextmanager
def manifest_signature(module: tf.Module, *, batched: bool = False) -> Iterator[Any]:
    """Gives a module the function `ntk_manifest`, to be saved as a signature while the context lasts.

    It takes a scalar string `key` and returns the scalar string `manifest`: the manifest's entry of that name in JSON,
    all of the manifest for "", and "null" if there is none; with `batched` one for each of several keys. The table
    behind it is read when the SavedModel is loaded, from an asset that `write_manifest` replaces, since the manifest is
    complete only after the SavedModel was verified.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / _TABLE.name
        path.write_text(_lines({}), encoding="utf-8")
        initializer = tf.lookup.TextFileInitializer(str(path), tf.string, 0, tf.string, 1, delimiter="\t")
        table = tf.lookup.StaticHashTable(initializer, "null")

        def ntk_manifest(key: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"manifest": table.lookup(key)}

        module.ntk_manifest_table = table  # or the table would not be saved
        module.ntk_manifest = tf.function(
            ntk_manifest, input_signature=[tf.TensorSpec([None] if batched else [], tf.string, "key")]
        )
        yield module.ntk_manifest


def write_manifest(saved_model: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a SavedModel into its directory, for both."""
    file = saved_model / MANIFEST
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (saved_model / _TABLE).write_text(_lines(manifest), encoding="utf-8")


def _lines(manifest: Mapping[str, Any]) -> str:
    """Lines of key, tab, JSON; in JSON tabs and line breaks are escaped."""
    return "".join(f"{key}\t{json.dumps(value)}\n" for key, value in {"": manifest, **manifest}.items())
