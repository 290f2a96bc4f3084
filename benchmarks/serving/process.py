"""A server in a process of its own, which can be restarted, and whose memory is watched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from serving import Client


class ServerProcess:
    """The embedded server by `ntk-serve`, on ports that stay the same.

    Attributes:
      grpc_address: host:port.
      rest_address: http://host:port.
      memory: for each life of the process the pairs (seconds since the epoch, resident bytes) seen.
    """

    def __init__(self, base_dir: Path, model: str, log: Path, *, batching: bool = False) -> None:
        """Starts it; `log` gets what it writes, `batching` is as of `ntk-serve`."""
        ports = [_free_port(), _free_port()]
        self.grpc_address, self.rest_address = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        self.memory: list[list[tuple[float, int]]] = []
        self._model = model
        self._command = [
            sys.executable, "-m", "serving.start.main", f"--model_base_path={base_dir}", f"--model_name={model}",
            f"--port={ports[0]}", f"--rest_api_port={ports[1]}", "--server=embedded",
            f"--batching={str(batching).lower()}",
        ]  # fmt: skip
        self._log = log.open("ab")
        self._stop = threading.Event()
        self._start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _start(self) -> None:
        self.memory.append([])
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)

    def wait_until_ready(self) -> None:
        """Waits until it serves."""
        with Client(self.grpc_address, model=self._model) as client:
            client.wait_until_ready(300)

    def restart(self) -> int:
        """Ends it as an operator would, and starts it again; returns its exit code."""
        code = self._end()
        self._start()
        return code

    def stop(self) -> int:
        """Ends it; returns its exit code."""
        self._stop.set()
        code = self._end()
        self._log.close()
        return code

    def _end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(0.25):
            try:
                pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
            if pages:  # a process that has ended has none
                self.memory[-1].append((time.time(), pages * page))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port
