"""A server from its start to its end: ready lines, signals, exit code."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from absl import logging

from serving.shared.addresses import from_here, host_port
from serving.start import example_request
from serving.start.server_choice import Choice

if TYPE_CHECKING:
    from serving.local_server import LocalServer

_POLL_SECONDS = 0.2


def announce(choice: Choice) -> None:
    """Says which server it is, and why."""
    print(f"server  {choice.kind} ({choice.reason})", flush=True)


def _show_ready(host: str, grpc_port: int, rest_port: int, names: Sequence[str]) -> None:
    print(f"gRPC    {host_port(host, grpc_port)}\nREST    http://{host_port(host, rest_port)}", flush=True)
    local = host_port(from_here(host), rest_port)
    for name in names:
        with contextlib.suppress(urllib.error.HTTPError):
            metadata = example_request.fetch_metadata(local, name)
            version = metadata["model_spec"]["version"]
            line = example_request.curl_line(local, name, metadata)
            print(f"model   {name}, version {version}\n\n{line}\n", flush=True)


@contextlib.contextmanager
def ended_by_signal() -> Iterator[Callable[[float | None], bool]]:
    """A function that waits for SIGTERM or SIGINT, for some seconds or for ever, and tells if one came.

    It reads a pipe. An event's lock would be held by the very wait that the handler interrupts, to wait for the lock.
    """
    came, comes = os.pipe()

    def wait(seconds: float | None) -> bool:
        return bool(select.select([came], [], [], seconds)[0])

    def handle(number: int, frame: types.FrameType | None) -> None:
        if not wait(0):
            os.write(comes, b"!")

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(came)
        os.close(comes)


def run_server(server: LocalServer, names: Sequence[str]) -> None:
    """Runs the embedded server of models of these names until a signal, and then lets requests finish.

    Raises:
      Exception: why it could not start.
    """
    with ended_by_signal() as ended:
        # In a thread of its own, because loading runs for minutes without looking at signals.
        start = _Background(server.start)
        while not ended(_POLL_SECONDS) and not start.done:
            pass
        if start.done:
            start.result()
            _show_ready(server.options.host, server.grpc_port, server.rest_port, names)
            ended(None)
            logging.info("stopping: requests have %g s to finish", server.options.shutdown_seconds)
            server.stop()


class _Background:
    """A call in a thread that does not hold up the end of the process."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> None:
        """Raises what the call raised."""
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error


def run_process(
    ended: Callable[[float | None], bool],
    choice: Choice,
    command: Sequence[str],
    environment: Mapping[str, str],
    host: str,
    ports: Sequence[int],
    names: Sequence[str],
) -> int:
    """Runs a server until `ended`, or until it ends by itself; says when it is ready, and returns the exit code."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as process:
        ready = False
        while process.poll() is None and not ended(_POLL_SECONDS):
            if not ready and all(_is_available(host_port(from_here(host), ports[1]), name) for name in names):
                ready = True
                _show_ready(host, ports[0], ports[1], names)
        if process.poll() is None:
            process.terminate()
            process.wait()
            return 0
        print(f"error: {choice.kind} ended by itself, with exit code {process.returncode}", file=sys.stderr)
        return process.returncode if 0 < process.returncode < 256 else 1


def free_port() -> int:
    """A port for a server that takes 0 for none."""
    with socket.create_server(("", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def _is_available(rest_address: str, name: str) -> bool:
    try:
        example_request.fetch_metadata(rest_address, name, seconds=5)
    except (OSError, ValueError):
        return False
    return True
