"""Runs a written SavedModel in a process that can import TensorFlow alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.errors import ExportError
from exporter.functionalize import FunctionalModel
from exporter.plan.limits import out_of_memory
from exporter.plan.signatures import SIGNATURES, input_names, param_names

_SCRIPT = Path(__file__).with_name("reload_script.py")

_EVERY = 0.5  # seconds; so often it is told how many calls were made

Results = tuple[dict[str, np.ndarray], dict[str, float]]
Told = Callable[[int, int], object]
"""Told how many calls were made, of how many."""


class ReloadingProcess:
    """A process that imports TensorFlow, and waits for a SavedModel to call; it ends with the `with` statement."""

    def __init__(self) -> None:
        """Starts it."""
        self._files = contextlib.ExitStack()
        self._directory = Path(self._files.enter_context(tempfile.TemporaryDirectory()))
        self._said = self._directory / "stderr.txt"
        with self._said.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr
            )
        self._files.enter_context(self._process)
        self._files.callback(self._process.kill)

    def __enter__(self) -> ReloadingProcess:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends it, whatever it does."""
        self._files.close()

    def start(
        self,
        saved_model: Path,
        model: FunctionalModel,
        sides: Mapping[str, tuple[np.ndarray, ...]],
        params: Mapping[str, np.ndarray],
        signatures: Sequence[str],
        requests: Mapping[str, Mapping[int, int]],
        *,
        empty: Collection[str] = (),
    ) -> Callable[[Told], Results]:
        """Lets it call a SavedModel, once; what it returns waits for the results.

        Args:
          saved_model: its directory.
          model: what it was made of, with inputs and variables of its dtypes.
          sides: examples for x, x1 and x2.
          params: values for `ntk_with_params`; if these are the model's own, it is called when its variables have none.
          signatures: names of those to call, and the methods of these names.
          requests: for each signature further numbers of examples to call it with, which are the same ones repeated,
            and for each of these how many of them are x2.
          empty: names of the methods that get no examples, which costs nothing.

        Returns:
          A function of what is told how far it is. It returns the results, by "signature/NAME", "method/NAME" and
          "signature/NAME/EXAMPLES", and the times there in seconds; it raises ExportError if the SavedModel cannot be
          loaded or called.
        """
        inputs, outputs, made = (self._directory / name for name in ("inputs.npz", "outputs.npz", "calls_made"))
        total = 2 * len(signatures) + sum(len(requests.get(name, {})) for name in signatures)
        np.savez(inputs, allow_pickle=False, **_arrays(model, sides, params, signatures, requests, empty))
        line = json.dumps([str(path) for path in (saved_model, inputs, outputs, made)]) + "\n"

        def results(told: Told) -> Results:
            done = 0
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return _results(self._process.wait(_EVERY), outputs, self._said)
                if made.exists() and made.stat().st_size > done:
                    done = made.stat().st_size
                    told(done, total)

        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself, which `results` tells
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        return results


def _arrays(
    model: FunctionalModel,
    sides: Mapping[str, tuple[np.ndarray, ...]],
    params: Mapping[str, np.ndarray],
    signatures: Sequence[str],
    requests: Mapping[str, Mapping[int, int]],
    empty: Collection[str],
) -> dict[str, np.ndarray]:
    """What the script reads."""
    arrays: dict[str, np.ndarray] = {}
    arguments: dict[str, Any] = {}
    side_of: dict[str, str] = {}
    for side, values in sides.items():
        names = input_names(side, model.signature_inputs)
        side_of |= dict.fromkeys(names, side)
        for key, array, spec in zip(names, values, model.signature_inputs, strict=True):
            arrays[key] = array if spec.dtype == "string" else array.astype(spec.dtype)
        arguments[side] = names[0] if len(names) == 1 else list(names)
    keys = param_names(model.trainable)
    arrays |= {keys[path]: value.astype(model.trainable[path].dtype) for path, value in params.items()}
    calls = {
        name: {
            "arguments": [*(arguments[s] for s in SIGNATURES[name].sides), *([keys] * SIGNATURES[name].takes_params)],
            "overwritten": SIGNATURES[name].takes_params and params is model.trainable,
            "without": [k for k, s in side_of.items() if name in empty and s in SIGNATURES[name].sides],
            "rows": {
                n: {k: columns if s == "x2" else n for k, s in side_of.items() if s in SIGNATURES[name].sides}
                for n, columns in requests.get(name, {}).items()
            },
        }
        for name in signatures
    }
    arrays = {key: _storable(array) for key, array in arrays.items()}
    return arrays | {"calls": np.frombuffer(json.dumps(calls).encode(), np.uint8)}


def _results(returncode: int, outputs: Path, said: Path) -> Results:
    """What a process that has ended has written.

    Raises:
      ExportError: it failed.
    """
    if returncode != 0:
        text = said.read_text(errors="replace")
        if told := out_of_memory(text):
            raise told
        lines = [line for line in text.splitlines() if line.strip()]
        raise ExportError(
            "Verification failed: expected the SavedModel to load and run in a process that can import TensorFlow "
            f"alone, received exit code {returncode}: {lines[-1] if lines else 'no message'}"
        )
    with np.load(outputs) as file:
        results = dict(file.items())
    seconds = json.loads(results.pop("seconds").tobytes())
    return results, seconds


def _storable(array: np.ndarray) -> np.ndarray:
    """What a file of NumPy's holds, and the script turns back into the signature's dtype."""
    if array.dtype == object:
        return np.frombuffer(tf.io.serialize_tensor(array).numpy(), np.uint8)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array  # which float32 holds exactly
