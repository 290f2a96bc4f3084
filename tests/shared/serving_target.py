"""The server that test_server_behaviour.py asks: the embedded one, or a real TF Serving.

| environment | server |
| --- | --- |
| (nothing) | the embedded server, in the process of the tests |
| TF_MODEL_SERVER=/path/to/tensorflow_model_server | this binary, started with `serving.shared.model_server`'s flags |
| NTK_SERVING_ADDRESS=host:grpcport[,host:restport] | a running server; REST is then port 8501 of the same host |

A running server's versions are not the tests' to change, so that those tests are left out which add some. It should
serve an exported kernel by the name NTK_SERVING_MODEL ("default" without it); if NTK_SERVING_MODEL_PATH names the
directory of the served version, answers are compared with `tf.saved_model.load` too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import serving_models
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.shared.model_server import model_server_flags, session_config

SECONDS = 120  # that a server may take for anything
RUNNING, BINARY = (os.environ.get(name, "") for name in ("NTK_SERVING_ADDRESS", "TF_MODEL_SERVER"))
GIVEN_MODEL = os.environ.get("NTK_SERVING_MODEL", "default")
GIVEN_PATH = os.environ.get("NTK_SERVING_MODEL_PATH", "")
CHANNEL = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclasses.dataclass(frozen=True)
class Target:
    """A server.

    Attributes:
      grpc_address, rest_address: host:port.
      model: the name of a kernel that it serves.
      path: of the newest served version of it, if that is known.
      labelled: the name of a model whose versions 1 (scale 1, label stable) and 2 (scale 2, label canary) are served.
      swap: the base directory of the model "swap", of which the newest version is served.
      words: the name of a model that takes texts: `serving_models.Words`.
    """

    grpc_address: str
    rest_address: str
    model: str
    path: Path | None = None
    labelled: str | None = None
    swap: Path | None = None
    words: str | None = None

    @functools.cached_property
    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.grpc_address, CHANNEL)

    @functools.cached_property
    def loaded(self) -> Any:
        """The served version as TensorFlow loads it in process; None if its path is not known."""
        return tf.saved_model.load(str(self.path)) if self.path else None

    def predict(self, model: str, signature: str, *, version=None, label=None, timeout=SECONDS, **inputs):
        """The outputs, asked over gRPC."""
        request = serving_models.predict_request(model, signature, **inputs)
        request.model_spec.CopyFrom(spec(model, version, label, signature))
        response = prediction_service_pb2_grpc.PredictionServiceStub(self.channel).Predict(request, timeout=timeout)
        return response, {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    def send(self, request: predict_pb2.PredictRequest, timeout=SECONDS):
        return prediction_service_pb2_grpc.PredictionServiceStub(self.channel).Predict(request, timeout=timeout)

    def metadata(self, model: str):
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec(model), metadata_field=["signature_def"]
        )
        response = prediction_service_pb2_grpc.PredictionServiceStub(self.channel).GetModelMetadata(
            request, timeout=SECONDS
        )
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return response.model_spec, signatures.signature_def

    def status(self, model: str, version=None) -> dict[int, Any]:
        """(state, error code, message) by version, asked over gRPC."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec(model, version))
        response = model_service_pb2_grpc.ModelServiceStub(self.channel).GetModelStatus(request, timeout=SECONDS)
        return {
            one.version: (State.Name(one.state), one.status.error_code, one.status.error_message)
            for one in response.model_version_status
        }

    def rest(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None):
        """Status and JSON of a REST request; what is no JSON as it is."""
        connection = http.client.HTTPConnection(self.rest_address, timeout=SECONDS)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        is_json = text and response.getheader("Content-Type") == "application/json"
        return response.status, json.loads(text) if is_json else text


State = get_model_status_pb2.ModelVersionStatus.State


def spec(model: str, version=None, label=None, signature: str = "") -> model_pb2.ModelSpec:
    result = model_pb2.ModelSpec(name=model, signature_name=signature)
    if version is not None:
        result.version.value = version
    if label is not None:
        result.version_label = label
    return result


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first true result."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return result


@contextlib.contextmanager
def running(folder: Path, kernel: Path) -> Iterator[Target]:
    """The server that the environment asks for; `kernel` is the version directory of an exported kernel."""
    if RUNNING:
        grpc_address, _, rest_address = RUNNING.partition(",")
        rest_address = rest_address or f"{grpc_address.rpartition(':')[0]}:8501"
        yield Target(grpc_address, rest_address, GIVEN_MODEL, Path(GIVEN_PATH) if GIVEN_PATH else None)
        return
    bases = {name: folder / name for name in NAMES}
    path = serving_models.copy_version(kernel, bases["kernel"], 1)
    for version in (1, 2):
        serving_models.save_version(bases["labelled"], version, version)
    serving_models.save_version(bases["swap"], 1, 1)
    serving_models.save_words(bases["words"], 1)
    config = folder / "models.config"
    config.write_text(CONFIG.format(**bases))
    with (_binary if BINARY else _embedded)(config) as (grpc_address, rest_address):
        yield Target(grpc_address, rest_address, "kernel", path, "labelled", bases["swap"], "words")


NAMES = ("kernel", "labelled", "swap", "words")
CONFIG = """
model_config_list {{
  config {{ name: "kernel" base_path: "{kernel}" model_platform: "tensorflow" }}
  config {{
    name: "labelled" base_path: "{labelled}" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
  config {{ name: "swap" base_path: "{swap}" model_platform: "tensorflow" }}
  config {{ name: "words" base_path: "{words}" model_platform: "tensorflow" }}
}}
"""


@contextlib.contextmanager
def _embedded(config: Path) -> Iterator[tuple[str, str]]:
    from serving.local_server import LocalServer, ServerOptions
    from serving.local_server.model_config import read_model_config

    with LocalServer(read_model_config(config), ServerOptions(poll_seconds=0.1)) as server:
        yield server.grpc_address, server.rest_address


@contextlib.contextmanager
def _binary(config: Path) -> Iterator[tuple[str, str]]:
    ports = [free_port(), free_port()]
    session = config.with_name("session.config")
    session.write_text(session_config())
    flags = model_server_flags(
        model_config_file=config, port=ports[0], rest_api_port=ports[1], session_config_file=session
    )
    with subprocess.Popen([BINARY, *map(str, flags)], stdout=sys.stderr) as process:
        addresses = tuple(f"127.0.0.1:{port}" for port in ports)
        target = Target(*addresses, "kernel")

        def ready() -> bool:
            assert process.poll() is None, f"{BINARY} ended with exit code {process.returncode}"
            try:
                return all(target.rest("GET", f"/v1/models/{name}")[0] == 200 for name in NAMES)
            except OSError:
                return False

        try:
            wait_for(ready)
            yield addresses
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def random_inputs(signature, seed: int) -> dict[str, np.ndarray]:
    """Random values for a signature of an exported kernel: three examples for inputs x2..., two for all others."""
    random = np.random.default_rng(seed)
    inputs = {}
    for name, info in sorted(signature.inputs.items()):
        count = 3 if name.startswith("x2") else 2
        shape = [count if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]
        dtype = np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
        if dtype.kind == "O":
            inputs[name] = np.full(shape, b"", object)
        else:
            inputs[name] = random.normal(size=shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
    return inputs
