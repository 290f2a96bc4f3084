"""The generated serve.sh of an export, with a real TF Serving if TF_MODEL_SERVER names one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import model_server_stand_in
import numpy as np
import pytest
import serving_target

import serving
from serving.bundle.contents import BundleOptions
from serving.bundle.files import write_bundle
from serving.doctor.report import Outcome
from serving.doctor.server import check_server

pytestmark = pytest.mark.skipif(bool(serving_target.RUNNING), reason="a server that runs was started by other means")


@pytest.fixture(scope="module")
def addresses(exported, tmp_path_factory):
    """By prefix, of a server that serve.sh has started for "two_inputs"."""
    folder = tmp_path_factory.mktemp("generated")
    program = serving_target.BINARY
    if not program:
        stand_in = folder / "tensorflow_model_server"
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{model_server_stand_in.__file__}" "$@"\n')
        stand_in.chmod(0o755)
        program = str(stand_in)
    base = folder / "two inputs"
    shutil.copytree(exported("two_inputs").path, base / "1")
    script = write_bundle(base, BundleOptions("two_inputs", cpus=2)).directory / "serve.sh"
    ports = [serving_target.free_port() for _ in range(2)]
    command = [script, f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    roots = [str(Path(serving.__file__).parents[1]), str(Path(model_server_stand_in.__file__).parent)]
    environment = {**os.environ, "TF_MODEL_SERVER": program, "PYTHONPATH": os.pathsep.join(roots)}
    with subprocess.Popen(command, env=environment) as process:
        grpc, rest = (f"127.0.0.1:{port}" for port in ports)
        try:
            with serving.Client(grpc, model="two_inputs") as client:
                serving_target.wait_for(lambda: process.poll() is not None or is_ready(client))
            assert process.poll() is None, "it ended by itself"
            yield {"gRPC": grpc, "REST": f"http://{rest}"}
        finally:
            process.terminate()


def is_ready(client):
    try:
        return client.wait_until_ready(5)
    except serving.ServingError:
        return None


@pytest.mark.parametrize("protocol", ["gRPC", "REST"])
def test_every_method_of_the_client(addresses, exported, protocol):
    one = exported("two_inputs")
    x1, x2 = one.inputs(5, seed=1), one.inputs(3, seed=2)
    left, right = one.argument(x1), one.argument(x2)
    params = {path: 0.5 * value.numpy() for path, value in one.loaded.params.items()}
    with serving.Client(addresses[protocol], model="two_inputs") as client:
        assert client.metadata().manifest == one.result.manifest
        for result, expected in (
            (client.kernel(x1, x2), one.loaded.ntk(left, right)),
            (client.kernel(x1), one.loaded.ntk_symmetric(left)),
            (client.diagonal(x1), one.loaded.ntk_diagonal(left)),
            (client.forward(x1), one.loaded.forward(left)),
            (client.kernel(x1, x2, params=params), one.loaded.ntk_with_params(left, right, params)),
        ):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("protocol", ["gRPC", "REST"])
def test_the_doctor_finds_nothing_wrong(addresses, protocol):
    with serving.Client(addresses[protocol], model="two_inputs") as client:
        checks = check_server(client, 30)
    assert not [check for check in checks if check.outcome is Outcome.BAD]
    assert "ntk_with_params" in next(check.detail for check in checks if check.name == "signatures")
