"""In tensorflow_model_server's place where there is none: takes its flags and files, and is the embedded server.

A flag that is not known to be safe is an error.
"""

import argparse
import pathlib
import signal

import safe_flags
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2

from serving.local_server import LocalServer, ServerOptions
from serving.local_server.model_config import read_model_config


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in safe_flags.SAFE:
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    session_config = pathlib.Path(given.tensorflow_session_config_file).read_text(encoding="utf-8")
    text_format.Parse(session_config, config_pb2.ConfigProto())
    options = ServerOptions(grpc_port=int(given.port), rest_port=int(given.rest_api_port))
    with LocalServer(read_model_config(pathlib.Path(given.model_config_file)), options):
        signal.sigwait([signal.SIGTERM])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in all threads, so that `sigwait` gets it
    main()
