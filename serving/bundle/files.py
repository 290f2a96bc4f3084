"""What a deployment needs beside the versions: server flags, model config, container and Kubernetes files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from google.protobuf import text_format

from serving.bundle import batching
from serving.shared import xla_cache
from serving.shared.exports import BUNDLE, MANIFEST, read_manifest, version_directories, version_number
from serving.shared.model_server import GRPC_PORT, HARMFUL, IMAGE, REST_PORT, Flag, model_server_flags, session_config
from serving.shared.protos import Table, message_classes

_RECORD = "bundle.json"  # what was written, for the next time
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


def default_options(base_dir: Path) -> BundleOptions:
    """Those of the bundle that is there; without one the model is named as the directory.

    Raises:
      BundleError: what the bundle says of itself is damaged.
    """
    record = _read_record(base_dir / BUNDLE / _RECORD)
    if record is not None:
        return record.options
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", base_dir.absolute().name).strip("-._") or "ntk"
    return BundleOptions(name, batched=(base_dir / BUNDLE / batching.DIRECTORY).is_dir())


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a bundle was made with, and the digest of each file as it was written."""

    options: BundleOptions
    digests: Mapping[str, str]


def _read_record(path: Path) -> _Record | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _Record(BundleOptions(**content["options"]), dict(content["digests"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error!r}. Remove it, and give the flags again") from None


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


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
      directory: of its files.
      kept: the files that are as somebody changed them since they were written; for each what is wrong with it, if
        anything is.
    """

    directory: Path
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write_bundle(base_dir: Path, options: BundleOptions) -> Bundle:
    """Writes the files into a directory in a model base directory, except those that somebody has changed there.

    The model for batched requests is written there too, for every version, if `options.batched`.

    Raises:
      BundleError: there is no export in `base_dir`.
      BatchingError: it cannot be batched.
      ManifestError: the manifest of a version is damaged.
      OSError: a file cannot be written.
    """
    versions = exported_versions(base_dir)
    manifest = read_manifest(versions[-1])
    directory = base_dir / BUNDLE
    directory.mkdir(exist_ok=True)
    if options.batched:
        for version in versions:
            batching.write_rowwise(version, directory / batching.DIRECTORY / version.name)
        for made in (directory / batching.DIRECTORY).iterdir():
            if version_number(made.name) is not None and made.name not in {version.name for version in versions}:
                shutil.rmtree(made)
    record = _read_record(directory / _RECORD)
    before = record.digests if record is not None else {}
    digests, kept = {}, {}
    for name, text in bundle_files(manifest, options).items():
        path = directory / name
        if name in before and path.exists() and _digest(path.read_bytes()) != before[name]:
            digests[name] = before[name]
            kept[name] = _harm(path)
        else:
            digests[name] = _digest(text.encode())
            _replace(path, text, executable=name.endswith(".sh"))
    content = {"options": dataclasses.asdict(options), "digests": digests}
    _replace(directory / _RECORD, json.dumps(content, indent=2) + "\n", executable=False)
    return Bundle(directory, kept)


def _harm(path: Path) -> str:
    """What is wrong with a file that somebody changed; empty if nothing is."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return "; ".join(
        f"a server with its flag --{flag} {what}: take the flag out of it"
        for flag, what in HARMFUL.items()
        if any(f"--{flag}" in line and f"--{flag}=false" not in line for line in lines)
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def exported_versions(base_dir: Path) -> list[Path]:
    """The versions that exports wrote into a base directory, by number.

    Raises:
      BundleError: there are none.
    """
    found = [path for path in version_directories(base_dir) if (path / MANIFEST).is_file()]
    if not found:
        raise BundleError(
            f"expected a model base directory that ntk-export wrote, with versions 1, 2, ..., received {base_dir}"
        )
    return found


def bundle_files(manifest: Mapping[str, Any], options: BundleOptions) -> dict[str, str]:
    """The text of each file, by name.

    Args:
      manifest: of the newest version.
      options: how it is to be served.
    """
    need = resources(manifest, options.cpus)
    flags = _flags(options, need, f"{_MODELS}/{options.model_name}/{BUNDLE}")
    files = {
        "models.config": _models_config(options),
        _SESSION_CONFIG: session_config(options.cpus),
        "serve.sh": _script(options, flags),
        "compose.yaml": _yaml([_compose(options, need, flags)], "docker compose -f compose.yaml up"),
        "kubernetes.yaml": _yaml(
            _kubernetes(options, need, flags),
            f"kubectl apply -f kubernetes.yaml; the volume claim {_dns_name(options)}-models holds the base directory",
        ),
    }
    if options.batched:
        files["batching_parameters.txt"] = batching.shared_parameters(options.cpus)
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


def _models_config(options: BundleOptions) -> str:
    config = _ModelServerConfig()
    path = f"{_MODELS}/{options.model_name}"
    models = {options.model_name: path}
    if options.batched:
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


def _replace(path: Path, text: str, *, executable: bool) -> None:
    """Writes a file at once: whoever reads it meanwhile sees the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o755 if executable else 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
