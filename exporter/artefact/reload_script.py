"""Run by itself, in a process that can import TensorFlow alone: loads a SavedModel and calls all it offers.

    python reload_script.py SAVED_MODEL INPUTS.npz OUTPUTS.npz

INPUTS holds the arrays to call it with, by input name ("x1", "x2", "x", "params_..."; see `exporter.plan.signatures`).
OUTPUTS gets the result of each signature ("signature/NAME") and of each method ("method/NAME"), and times in seconds.
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
for name in ("jax", "jaxlib", "keras", "tf_keras", "tf2jax", "neural_tangents", "exporter"):
    sys.modules[name] = None  # type: ignore[assignment]  # makes importing it an ImportError

import numpy as np  # noqa: E402  # only after the imports above are blocked
import tensorflow as tf  # noqa: E402


def main(saved_model: str, inputs_path: str, outputs_path: str) -> None:
    """Loads, calls, writes the results."""
    with np.load(inputs_path) as file:
        calls = json.loads(file["calls"].tobytes())  # for each signature the arguments of its method, rows of requests
        values = {key: value for key, value in file.items() if key != "calls"}
    outputs, seconds = {}, {}
    start = time.perf_counter()
    model = tf.saved_model.load(saved_model)
    seconds["load"] = time.perf_counter() - start
    specs = {k: s for name in calls for k, s in model.signatures[name].structured_input_signature[1].items()}
    inputs = {
        key: tf.cast(value, specs[key].dtype) if key in specs else tf.constant(value) for key, value in values.items()
    }
    start = time.perf_counter()
    for name, call in calls.items():
        signature = model.signatures[name]
        flat = {key: inputs[key] for key in signature.structured_input_signature[1]}
        (outputs[f"signature/{name}"],) = signature(**flat).values()
        for n, rows in call["rows"].items():
            (outputs[f"signature/{name}/{n}"],) = signature(
                **{key: _repeated(value, rows[key]) if key in rows else value for key, value in flat.items()}
            ).values()
    seconds["first_calls"] = time.perf_counter() - start
    for name, call in calls.items():
        outputs[f"method/{name}"] = getattr(model, name)(*(_argument(a, inputs) for a in call["arguments"]))
        flat = {key: inputs[key] for key in model.signatures[name].structured_input_signature[1]}
        start = time.perf_counter()
        model.signatures[name](**flat)
        seconds[name] = time.perf_counter() - start
    results = {key: _storable(value).numpy() for key, value in outputs.items()}
    np.savez(outputs_path, seconds=np.frombuffer(json.dumps(seconds).encode(), np.uint8), **results)


def _storable(value: tf.Tensor) -> tf.Tensor:
    return tf.cast(value, tf.float32) if value.dtype == tf.bfloat16 else value


def _repeated(value: tf.Tensor, rows: int) -> tf.Tensor:
    return tf.gather(value, tf.range(rows) % len(value))


def _argument(argument: object, inputs: dict[str, tf.Tensor]) -> object:
    """Replaces the names of inputs in a structure of lists and dicts by the inputs."""
    if isinstance(argument, dict):
        return {key: inputs[name] for key, name in argument.items()}
    return [inputs[name] for name in argument] if isinstance(argument, list) else inputs[str(argument)]


if __name__ == "__main__":
    main(*sys.argv[1:])
