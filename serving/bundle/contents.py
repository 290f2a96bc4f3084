"""What the files of a bundle say: server flags, model config, session config, container and Kubernetes files."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from google.protobuf import text_format

from serving.bundle import batching
from serving.shared import batching_parameters, xla_cache
from serving.shared.exports import BUNDLE, are_answers
from serving.shared.model_server import GRPC_PORT, IMAGE, REST_PORT, Flag, model_server_flags, session_config
from serving.shared.protos import Table, message_classes

_SESSION_CONFIG = "session.config"

_GIB = 2**30
_BASELINE = _GIB  # of a server without models, and of compiled programs
_SECONDS_TO_LOAD = 600  # compiling what the warmup requests call included
_MODELS = "/models"  # in the container
_XLA_VOLUME = "xla-cache"


# Of tensorflow_serving/config/model_server_config.proto, which would be imported with all of TensorFlow.
CONFIG_FIELDS: Table = {
    "tensorflow.serving.ModelConfig": {
        "name": (1, "string"),
        "base_path": (2, "string"),
        "model_platform": (4, "string"),
    },
    "tensorflow.serving.ModelConfigList": {"config": (1, "[]tensorflow.serving.ModelConfig")},
    "tensorflow.serving.ModelServerConfig": {"model_config_list": (1, "tensorflow.serving.ModelConfigList")},
}
_ModelServerConfig = message_classes(CONFIG_FIELDS)["tensorflow.serving.ModelServerConfig"]


class BundleError(Exception):
    """The files cannot be made from these options, or of what is there; its text is shown as it is."""


@dataclasses.dataclass(frozen=True)
class BundleOptions:
    """How the exports of a base directory are to be served.

    Attributes:
      model_name: by which clients ask for it.
      cpus: cores for the server.
      gpu: whether it has an NVIDIA GPU.
      batched: whether signatures whose rows are independent are served a second time, with requests joined.
    """

    model_name: str
    cpus: int = 4
    gpu: bool = False
    batched: bool = False

    def __post_init__(self) -> None:
        """Raises BundleError if a value is out of its range."""
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", self.model_name):
            raise BundleError(
                f"expected a model name of letters, digits, '_', '.' and '-', received {self.model_name!r}; choose one "
                "with --model_name"
            )
        if self.cpus < 1:
            raise BundleError(f"expected at least 1 core, received --cpus={self.cpus}")


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a server takes.

    Attributes:
      grpc_threads: gRPC requests at the same time.
      rest_threads: REST requests at the same time.
      memory_request: bytes with one request for each core under way.
      memory_limit: bytes with every thread at the export's memory budget.
    """

    grpc_threads: int
    rest_threads: int
    memory_request: int
    memory_limit: int


def resources(manifest: Mapping[str, Any], cpus: int) -> Resources:
    """Threads and memory of a server of that export on so many cores."""
    budget = manifest["configuration"]["export"]["memory_budget"]
    variables = [v for group in manifest["variables"].values() for v in group.values()]
    weights = sum(math.prod(v["shape"]) * np.dtype(v["dtype"]).itemsize for v in variables)
    fixed = _BASELINE + 2 * weights  # while a version replaces another both are there
    grpc_threads, rest_threads = 2 * cpus, cpus
    return Resources(grpc_threads, rest_threads, fixed + cpus * budget, fixed + (grpc_threads + rest_threads) * budget)


def bundle_files(manifest: Mapping[str, Any], options: BundleOptions) -> dict[str, str]:
    """The text of each file, by name.

    Args:
      manifest: of the newest version.
      options: how it is to be served.
    """
    need = resources(manifest, options.cpus)
    flags = _flags(options, need, f"{_MODELS}/{options.model_name}/{BUNDLE}")
    files = {
        "models.config": _models_config(options, rowwise=options.batched and not are_answers(manifest)),
        _SESSION_CONFIG: session_config(options.cpus),
        "serve.sh": _script(options, flags),
        "compose.yaml": _yaml([_compose(options, need, flags)], "docker compose -f compose.yaml up"),
        "kubernetes.yaml": _yaml(
            _kubernetes(options, need, flags),
            f"kubectl apply -f kubernetes.yaml; the volume claim {_dns_name(options)}-models holds the base directory",
        ),
    }
    if options.batched:
        files["batching_parameters.txt"] = batching_parameters.of_server(options.cpus)
    return files


def _flags(options: BundleOptions, need: Resources, directory: str) -> list[str]:
    flags = model_server_flags(
        model_config_file=f"{directory}/models.config",
        gpu=options.gpu,
        threads=options.cpus,
        grpc_max_threads=need.grpc_threads,
        session_config_file=f"{directory}/{_SESSION_CONFIG}",
        batching_parameters_file=f"{directory}/batching_parameters.txt" if options.batched else None,
    )
    rest = Flag("rest_api_num_threads", str(need.rest_threads), "as many as the memory limit allows for")
    return [str(flag) for flag in (*flags, rest)]


def _models_config(options: BundleOptions, *, rowwise: bool) -> str:
    config = _ModelServerConfig()
    path = f"{_MODELS}/{options.model_name}"
    models = {options.model_name: path}
    if rowwise:
        models[f"{options.model_name}_rowwise"] = f"{path}/{BUNDLE}/{batching.DIRECTORY}"
    for name, base_path in models.items():
        config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
    return str(text_format.MessageToString(config))


def _script(options: BundleOptions, flags: list[str]) -> str:
    """Runs a server on this machine, where the base directory lies elsewhere than in a container."""
    path = f"{_MODELS}/{options.model_name}"
    places = {f"{path}/{BUNDLE}/models.config": "$config", f"{path}/{BUNDLE}": "$here"}

    def argument(flag: str) -> str:
        place = next((place for place in places if place in flag), None)
        return f'"{flag.replace(place, places[place])}"' if place else shlex.quote(flag)

    arguments = " \\\n  ".join(map(argument, flags))
    return f"""#!/bin/sh
# Serves the exports beside this directory: ./serve.sh [more flags of tensorflow_model_server]
# Instead of the one on the PATH it runs $TF_MODEL_SERVER, if that is set. What it compiles is kept for the next start,
# for each program and kind of processor by itself; a cache that $TF_XLA_FLAGS names is taken instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
server=$(command -v "${{TF_MODEL_SERVER:-tensorflow_model_server}}") || {{
  echo "expected tensorflow_model_server on the PATH or named by TF_MODEL_SERVER, found neither" >&2
  exit 127
}}
processor=$(grep -iEm1 '^(flags|features)' /proc/cpuinfo | sha256sum | cut -c1-8)
cache=$here/{xla_cache.DIRECTORY}/$(stat -Lc %s-%Y "$server")-$processor
case ${{{xla_cache.VARIABLE}:--}} in -*)
  if mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ]; then
    quoted=$(printf %s "$cache" | sed 's/["\\\\]/\\\\&/g')
    export {xla_cache.VARIABLE}="{xla_cache.FLAGS}=\\"$quoted\\" ${{{xla_cache.VARIABLE}:-}}"
  fi
esac
base=$(dirname "$here" | sed 's/[&|\\\\]/\\\\&/g')
config=$(mktemp)
sed "s|{path}|$base|" "$here/models.config" > "$config"
exec "$server" \\
  {arguments} \\
  "$@"
"""


def _compose(options: BundleOptions, need: Resources, flags: list[str]) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": _image(options),
        "entrypoint": ["tensorflow_model_server"],
        "command": flags,
        "ports": [f"127.0.0.1:{GRPC_PORT}:{GRPC_PORT}", f"127.0.0.1:{REST_PORT}:{REST_PORT}"],
        "environment": {xla_cache.VARIABLE: _xla_flags(options)},
        "volumes": [
            {"type": "bind", "source": "..", "target": f"{_MODELS}/{options.model_name}", "read_only": True},
            {"type": "volume", "source": _XLA_VOLUME, "target": xla_cache.IN_CONTAINER},
        ],
        "cpus": options.cpus,
        "mem_reservation": f"{_mebibytes(need.memory_request)}m",
        "mem_limit": f"{_mebibytes(need.memory_limit)}m",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "bash", "-c", _health_command(options.model_name)],
            "start_period": f"{_SECONDS_TO_LOAD}s",
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
        },
    }
    if options.gpu:
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return {"services": {_dns_name(options): service}, "volumes": {_XLA_VOLUME: {}}}


def _kubernetes(options: BundleOptions, need: Resources, flags: list[str]) -> list[dict[str, Any]]:
    name = _dns_name(options)
    labels = {"app.kubernetes.io/name": name}
    # The metadata of a model are there when one of its versions is; its status also while it loads.
    probe = {"httpGet": {"path": f"/v1/models/{options.model_name}/metadata", "port": "rest"}, "timeoutSeconds": 5}
    container: dict[str, Any] = {
        "name": "server",
        "image": _image(options),
        "command": ["tensorflow_model_server"],
        "args": flags,
        "env": [{"name": xla_cache.VARIABLE, "value": _xla_flags(options)}],
        "ports": [{"name": "grpc", "containerPort": GRPC_PORT}, {"name": "rest", "containerPort": REST_PORT}],
        "resources": {
            "requests": {"cpu": str(options.cpus), "memory": f"{_mebibytes(need.memory_request)}Mi"},
            "limits": {"memory": f"{_mebibytes(need.memory_limit)}Mi"},
        },
        "startupProbe": {**probe, "periodSeconds": 5, "failureThreshold": _SECONDS_TO_LOAD // 5},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {"tcpSocket": {"port": "grpc"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "models", "mountPath": f"{_MODELS}/{options.model_name}", "readOnly": True},
            {"name": _XLA_VOLUME, "mountPath": xla_cache.IN_CONTAINER},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if options.gpu:
        container["resources"]["limits"]["nvidia.com/gpu"] = "1"
    claim = {"claimName": f"{name}-models", "readOnly": True}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [container],
                    # The cache is the pod's: it outlives a restart of the container, and never meets another processor.
                    "volumes": [
                        {"name": "models", "persistentVolumeClaim": claim},
                        {"name": _XLA_VOLUME, "emptyDir": {}},
                    ],
                    "terminationGracePeriodSeconds": 60,
                },
            },
        },
    }
    ports = [
        {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc"},
        {"name": "rest", "port": REST_PORT, "targetPort": "rest"},
    ]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": ports},
    }
    return [deployment, service]


def _health_command(model_name: str) -> str:
    """Succeeds if the REST API has a version of the model; the image has bash, and no curl."""
    request = f"GET /v1/models/{model_name}/metadata HTTP/1.0\\r\\n\\r\\n"
    return f"exec 3<>/dev/tcp/127.0.0.1/{REST_PORT} && printf '{request}' >&3 && head -n 1 <&3 | grep -q ' 200 '"


def _image(options: BundleOptions) -> str:
    return f"{IMAGE}-gpu" if options.gpu else IMAGE


def _xla_flags(options: BundleOptions) -> str:
    return xla_cache.xla_flags(xla_cache.in_container(_image(options)))


def _dns_name(options: BundleOptions) -> str:
    """The model's name as Kubernetes takes names."""
    return f"ntk-{re.sub(r'[^a-z0-9]+', '-', options.model_name.lower()).strip('-')}"[:56].rstrip("-")


def _mebibytes(size: int) -> int:
    return -(-size // 2**20)


class _Dumper(yaml.SafeDumper):
    """Writes what stands in several places in each of them."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


def _yaml(documents: Sequence[Any], usage: str) -> str:
    return f"# {usage}\n{yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)}"
