"""Checks of an export on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.doctor.report import Check, bad, good, note
from serving.doctor.results import check_results
from serving.shared.exports import ManifestError, read_manifest, version_directories

# None of these may be needed to use an export.
EXPORT_ONLY = ("jax", "jaxlib", "keras", "tf_keras", "tf2jax", "neural_tangents", "exporter")

_DEVICES = {"CPU": ("cpu",), "GPU": ("cuda", "rocm"), "TPU": ("tpu",)}  # TensorFlow's names, the manifest's
_OLDEST_TENSORFLOW = (2, 19)
_NEWEST_XLA_CALL_MODULE = 9  # that TensorFlow 2.19 and TF Serving 2.20 read
_MOST_WARMUP_RECORDS = 1000  # TF Serving refuses more


def find_version(path: Path) -> Path | None:
    """The version to check: the path itself, or the newest below a model base directory; None if there is none."""
    if (path / "saved_model.pb").is_file():
        return path
    versions = version_directories(path)
    return versions[-1] if versions else None


def check_saved_model(version: Path) -> list[Check]:
    """Checks the SavedModel of a version: everything that can be found out without a server."""
    try:
        manifest = read_manifest(version)
    except ManifestError as error:
        return [bad("export", str(error))]
    created = (
        f"{manifest['model']}, exported {manifest['created']} by ntk-exporter {manifest['versions']['ntk-exporter']}"
    )
    checks = [good("export", f"{version}: {created}"), _check_versions(manifest), _check_platforms(manifest)]
    model, loaded = _load(version)
    checks.append(loaded)
    if model is None:
        return checks
    checks.append(_check_signatures(manifest, model))
    checks.append(_check_warmup(version, manifest, model))
    return checks + check_results(manifest, _caller(model), Exception)


def _check_versions(manifest: Mapping[str, Any]) -> Check:
    import tensorflow as tf

    module = manifest["versions"]["xla_call_module"]
    words = f"TensorFlow {tf.__version__} here, {manifest['versions']['tensorflow']} at export; XlaCallModule {module}"
    if tuple(map(int, tf.__version__.split(".")[:2])) < _OLDEST_TENSORFLOW:
        return bad("versions", f"{words}. Loading needs TensorFlow 2.19 or newer")
    if module > _NEWEST_XLA_CALL_MODULE:
        return bad("versions", f"{words}. TensorFlow 2.19 and TF Serving 2.20 read {_NEWEST_XLA_CALL_MODULE} at most")
    return good("versions", words)


def _check_platforms(manifest: Mapping[str, Any]) -> Check:
    import tensorflow as tf

    exported = manifest["platforms"]
    present = sorted({device.device_type for device in tf.config.list_physical_devices()} & _DEVICES.keys())
    usable = [device for device in present if set(_DEVICES[device]) & set(exported)]
    words = f"exported for {', '.join(exported)}; here are {', '.join(present)}"
    if not usable:
        return bad("platforms", f"{words}. Export with one of them in export.platforms")
    if unused := [device for device in present if device not in usable]:
        return note("platforms", f"{words}; {', '.join(unused)} will not be used")
    return good("platforms", words)


def _load(version: Path) -> tuple[Any, Check]:
    import tensorflow as tf

    start = time.perf_counter()
    try:
        model = tf.saved_model.load(str(version))
    except Exception as error:  # whatever is damaged
        return None, bad("load", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    seconds = time.perf_counter() - start
    needed = [name for name in EXPORT_ONLY if sys.modules.get(name) is not None]
    words = f"{seconds:.1f} s with TensorFlow alone"
    if needed:
        words = f"{seconds:.1f} s; that it needs TensorFlow alone cannot be seen here, where {needed[0]} is imported"
    return model, (note if needed else good)("load", words)


def _check_signatures(manifest: Mapping[str, Any], model: Any) -> Check:
    expected = manifest["configuration"]["export"]["signatures"]
    missing = [name for name in expected if name not in model.signatures]
    if missing:
        return bad("signatures", f"expected {', '.join(expected)}; {', '.join(missing)} are missing")
    shapes = {s["input"]: s for s in manifest["inputs"]}
    for name in expected:
        for key, spec in model.signatures[name].structured_input_signature[1].items():
            side = key.split("_")[0]
            recorded = shapes.get(f"x{key.removeprefix(side)}")
            if recorded and (spec.shape.as_list() != recorded["shape"] or spec.dtype.name != recorded["dtype"]):
                return bad(
                    "signatures", f"{name} {key}: expected {recorded['dtype']} {recorded['shape']}, found {spec}"
                )
    given = ", ".join(f"{s['name']} {s['dtype']} {_dims(s['shape'])}" for s in manifest["inputs"])
    return good("signatures", f"{', '.join(expected)}; of {given}")


def _check_warmup(version: Path, manifest: Mapping[str, Any], model: Any) -> Check:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    from serving.shared.warmup_file import FILE

    path = version / FILE
    if not path.exists():
        return note("warmup", "none: the first request of each kind compiles it (export.warmup: true)")
    called: dict[str, int] = {}
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            name = request.model_spec.signature_name or "serving_default"
            if name not in model.signatures:
                return bad("warmup", f"a request for the signature {name!r}, which there is not: the load will fail")
            specs = model.signatures[name].structured_input_signature[1]
            problem = _misfit(request.inputs, specs)
            if problem:
                return bad("warmup", f"a request for {name} {problem}: the load will fail")
            called[name] = called.get(name, 0) + 1
    except Exception as error:  # damaged records
        return bad("warmup", f"{path.name} is damaged: {str(error).splitlines()[0]}")
    total = sum(called.values())
    if not 0 < total <= _MOST_WARMUP_RECORDS:
        return bad("warmup", f"{total} requests, expected 1 to {_MOST_WARMUP_RECORDS}")
    cold = [name for name in manifest["configuration"]["export"]["signatures"] if name not in called]
    words = f"{total} requests: " + ", ".join(f"{count} {name}" for name, count in called.items())
    return note("warmup", f"{words}; none for {', '.join(cold)}") if cold else good("warmup", words)


def _misfit(inputs: Mapping[str, Any], specs: Mapping[str, Any]) -> str:
    """What is wrong with a request's inputs; empty if nothing is."""
    import tensorflow as tf

    if set(inputs) != set(specs):
        return f"with inputs {', '.join(sorted(inputs)) or 'none'}, expected {', '.join(sorted(specs))}"
    for key, proto in inputs.items():
        shape, dtype = tf.TensorShape(proto.tensor_shape), tf.as_dtype(proto.dtype)
        if not specs[key].shape.is_compatible_with(shape) or dtype != specs[key].dtype:
            return f"with {key} {dtype.name} {shape}, expected {specs[key].dtype.name} {specs[key].shape}"
    return ""


def _caller(model: Any) -> Any:
    import tensorflow as tf

    def call(name: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        outputs = model.signatures[name](**{key: tf.constant(array) for key, array in inputs.items()})
        return {key: value.numpy() for key, value in outputs.items()}

    return call


def _dims(shape: list[int | None]) -> str:
    return f"({', '.join('n' if d is None else str(d) for d in shape)})"
