"""Which server there is to serve with: tensorflow_model_server, a container of it, or the embedded one."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from serving.shared import xla_cache

BINARY = "tensorflow_model_server"
RUNTIMES = ("docker", "podman")
_RUNTIME_SECONDS = 10
_XLA_VOLUME = "ntk_xla_cache"

Kind = Literal["tensorflow_model_server", "container", "embedded"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A server, why it was chosen, and the program that starts it (none for the embedded one)."""

    kind: Kind
    reason: str
    program: str = ""


def choose(
    wanted: str,
    image: str,
    *,
    environment: Mapping[str, str] = os.environ,
    which: Callable[[str], str | None] = shutil.which,
    has_image: Callable[[str, str], bool] | None = None,
) -> Choice:
    """Finds the server that is wanted; for "auto" the first of binary, container whose image is here, embedded.

    Args:
      wanted: a kind, or "auto".
      image: of the container.
      environment: in which TF_MODEL_SERVER may name the binary.
      which: finds a program on the PATH.
      has_image: whether a container runtime has an image; nothing is downloaded to find out.

    Raises:
      LookupError: if what is wanted is not here, with the cure.
    """
    if wanted == "embedded":
        return Choice("embedded", "as asked for")
    named = environment.get("TF_MODEL_SERVER", "")
    binary = which(named or BINARY)
    if wanted in ("auto", "tensorflow_model_server"):
        if binary:
            return Choice("tensorflow_model_server", binary, binary)
        if named:
            raise LookupError(f"TF_MODEL_SERVER: expected an executable, found none at {named}")
        if wanted == "tensorflow_model_server":
            raise LookupError(
                f"expected {BINARY} on the PATH or named by TF_MODEL_SERVER, found neither; "
                "install it, or take --server=container or --server=embedded"
            )
    runtime = next((program for name in RUNTIMES if (program := which(name))), None)
    if wanted == "container":
        if not runtime:
            raise LookupError(f"expected {' or '.join(RUNTIMES)} on the PATH, found neither; take --server=embedded")
        return Choice("container", f"{image} by {runtime}", runtime)
    if runtime and (has_image or _has_image)(runtime, image):
        return Choice("container", f"no {BINARY} on the PATH; {image} by {runtime}", runtime)
    return Choice("embedded", f"no {BINARY} on the PATH, no image {image}")


def container_command(
    runtime: str,
    image: str,
    host: str,
    ports: Sequence[int],
    paths: Sequence[str],
    flags: Sequence[str],
    *,
    gpu: bool,
    keep_compiled: bool = True,
) -> list[str]:
    """The command that runs tensorflow_model_server in a container.

    Args:
      runtime: docker or podman.
      image: of TF Serving.
      host: address of this machine at which the ports are opened.
      ports: that the flags name.
      paths: that the flags name, absolute; the container sees them at the same place, read-only.
      flags: of tensorflow_model_server.
      gpu: whether the container gets the GPUs.
      keep_compiled: whether a volume keeps what XLA compiles; it is for all containers that this command makes.
    """
    variable = f"--env={xla_cache.VARIABLE}={xla_cache.xla_flags(xla_cache.in_container(image))}"
    cache = [f"--volume={_XLA_VOLUME}:{xla_cache.IN_CONTAINER}", variable] if keep_compiled else []
    return [
        runtime,
        "run",
        "--rm",
        "--init",  # passes on SIGTERM, which a first process would ignore
        *(["--gpus=all"] if gpu else []),
        *(f"--publish={host}:{port}:{port}" for port in ports),
        *(f"--volume={path}:{path}:ro" for path in paths),
        *cache,
        f"--entrypoint={BINARY}",
        image,
        *flags,
    ]


def _has_image(runtime: str, image: str) -> bool:
    try:
        done = subprocess.run(
            [runtime, "image", "inspect", image],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_RUNTIME_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
