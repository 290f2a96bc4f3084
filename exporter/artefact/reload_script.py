"""Run by itself, in a process that can import TensorFlow alone: loads a SavedModel and calls all it offers.

    echo '["SAVED_MODEL", "INPUTS.npz", "OUTPUTS.npz", "CALLS_MADE"]' | python reload_script.py

It may be started before these files are there: the line is read when TensorFlow is imported. It ends when the process
that started it does. INPUTS holds the arrays to call it with, by input name ("x1", "x2", "x", "params_..."; see
`exporter.plan.signatures`). OUTPUTS gets the result of each signature ("signature/NAME") and of each method
("method/NAME"), and times in seconds. CALLS_MADE gets a byte for each call that was made.
"""

import functools
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()  # before the parent can have ended
gc.disable()  # modules and graphs stay until the end, and looking for garbage among them takes a tenth of the time
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
for name in ("jax", "jaxlib", "keras", "tf_keras", "tf2jax", "neural_tangents", "exporter"):
    sys.modules[name] = None  # type: ignore[assignment]  # makes importing it an ImportError

import numpy as np  # noqa: E402  # only after the imports above are blocked
import tensorflow as tf  # noqa: E402

AT_A_TIME = 2  # calls, of which one may compile while another does: more would take a memory budget each


def main(saved_model: str, inputs_path: str, outputs_path: str, calls_path: str) -> None:
    """Loads, calls, writes the results."""
    with np.load(inputs_path) as file:
        # For each signature its method's arguments, of those inputs no examples if it is to be called without, rows of
        # requests, and whether to call it when the trainable variables are not numbers any more.
        calls = json.loads(file["calls"].tobytes())
        values = {key: value for key, value in file.items() if key != "calls"}
    seconds = {}
    start = time.perf_counter()
    model = tf.saved_model.load(saved_model)
    seconds["load"] = time.perf_counter() - start
    specs = {k: s for name in calls for k, s in model.signatures[name].structured_input_signature[1].items()}
    inputs = {key: _input(value, specs.get(key)) for key, value in values.items()}
    flat = {name: {k: inputs[k] for k in model.signatures[name].structured_input_signature[1]} for name in calls}
    start = time.perf_counter()
    asked = {f"signature/{name}": functools.partial(_signature, model, name, flat[name]) for name in calls}
    for name, call in calls.items():
        given = inputs | {k: inputs[k][:0] for k in call["without"]}
        arguments = [_argument(a, given) for a in call["arguments"]]
        asked[f"method/{name}"] = functools.partial(getattr(model, name), *arguments)
    for name, call in calls.items():
        for n, rows in call["rows"].items():
            given = {k: _repeated(value, rows[k]) if k in rows else value for k, value in flat[name].items()}
            asked[f"signature/{name}/{n}"] = functools.partial(_signature, model, name, given)
    with open(calls_path, "wb", buffering=0) as made, futures.ThreadPoolExecutor(AT_A_TIME) as threads:

        def ask(call: Callable[[], tf.Tensor]) -> tf.Tensor:
            result = call()
            made.write(b".")
            return result

        last = [key for key in asked if calls[key.split("/")[1]]["overwritten"]]
        outputs = _all(ask, {key: call for key, call in asked.items() if key not in last}, threads)
        if last:
            for variable in model.params.values():
                variable.assign(tf.fill(variable.shape, tf.cast(float("nan"), variable.dtype)))
            outputs |= _all(ask, {key: asked[key] for key in last}, threads)
    seconds["first_calls"] = time.perf_counter() - start
    results = {key: _storable(value).numpy() for key, value in outputs.items()}
    np.savez(outputs_path, seconds=np.frombuffer(json.dumps(seconds).encode(), np.uint8), **results)


def _all(
    ask: Callable[[Callable[[], tf.Tensor]], tf.Tensor],
    calls: dict[str, Callable[[], tf.Tensor]],
    threads: futures.Executor,
) -> dict[str, tf.Tensor]:
    return dict(zip(calls, threads.map(ask, calls.values()), strict=True))


def _signature(model: Any, name: str, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    (value,) = model.signatures[name](**inputs).values()
    return value


def _input(value: np.ndarray, spec: tf.TensorSpec | None) -> tf.Tensor:
    """An input as its signature takes it; texts were stored as a serialized tensor."""
    if spec is not None and spec.dtype == tf.string:
        return tf.io.parse_tensor(value.tobytes(), tf.string)
    return tf.constant(value) if spec is None else tf.cast(value, spec.dtype)


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
    if line := sys.stdin.readline():
        main(*json.loads(line))
