"""Asks a server of answers from many clients at once, and checks every row.

    python -m benchmarks.answers demo/digits_answers --data=demo/digits_test.npz [--requests=10000] [--clients=16]
        [--nobatching]

Requests are of random rows of the data, 1 to 64, to `predict`, `nearest` and `support` in turn of chance, half of the
clients by gRPC, half by REST. Each row of an answer is compared with that of the SavedModel in this process. By default
the embedded server is started, which joins requests unless --nobatching is given; with --address a running one is
asked, which serves that directory. The exit code is 0 if every row was its own example's.
"""

import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from benchmarks import latencies
from benchmarks.answers import load
from benchmarks.serving.process import ServerProcess
from serving.shared.exports import version_directories

_DATA = flags.DEFINE_string("data", None, "A .npz file with the input x of the examples to ask about.", required=True)
_REQUESTS = flags.DEFINE_integer("requests", 10_000, "Requests in all.", lower_bound=1)
_CLIENTS = flags.DEFINE_integer("clients", 16, "Clients at the same time.", lower_bound=1)
_BATCHING = flags.DEFINE_bool("batching", True, "Whether the embedded server joins requests.")
_ADDRESS = flags.DEFINE_string("address", None, "HOST:PORT[,http://HOST:PORT] of a running server.")
_MODEL = flags.DEFINE_string("model_name", "answers", "The model's name on the server.")


def main(argv: Sequence[str]) -> int:
    """Runs what the flags say; returns the exit code."""
    import tensorflow as tf

    logging.set_verbosity(logging.WARNING)
    if len(argv) != 2:
        raise app.UsageError(f"expected one directory of answers, received {argv[1:]}")
    base_dir = pathlib.Path(argv[1])
    x = np.load(_DATA.value)["x"]
    expected = load.expected_of(tf.saved_model.load(str(version_directories(base_dir)[-1])), x)
    with tempfile.TemporaryDirectory() as directory:
        if _ADDRESS.value:
            outcome = _asked(_ADDRESS.value.split(","), x, expected)
        else:
            log = pathlib.Path(directory) / "server.log"
            server = ServerProcess(base_dir, _MODEL.value, log, batching=_BATCHING.value)
            try:
                server.wait_until_ready()
                outcome = _asked([server.grpc_address, server.rest_address], x, expected)
            finally:
                server.stop()
    print(f"{'requests':<24}{_REQUESTS.value:,}, {len(outcome.wrong)} with a wrong row")
    print(f"{'throughput':<24}{_REQUESTS.value / outcome.elapsed:.0f} requests/s by {_CLIENTS.value} clients")
    latencies.show(outcome.seconds)
    return 1 if outcome.wrong else 0


def _asked(addresses: Sequence[str], x: np.ndarray, expected: Any) -> load.Outcome:
    return load.run(addresses, _MODEL.value, x, expected, requests=_REQUESTS.value, clients=_CLIENTS.value)


if __name__ == "__main__":
    sys.exit(app.run(main))
