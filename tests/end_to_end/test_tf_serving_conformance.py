"""The embedded server answers what the real TF Serving 2.20 answered to the same requests: tf_serving/README.md."""

import functools
import importlib.util
import json
from pathlib import Path

import pytest
import serving_models

from serving.local_server import LocalServer, ModelOptions

_FOLDER = Path(serving_models.__file__).parent / "tf_serving"
RECORDED = json.loads((_FOLDER / "recorded.json").read_text())
# How TensorFlow's runtime and XLA begin to speak; all else is said by TF Serving itself.
RUNTIME = ("Error refining argument shapes", "Module shape refinement failed")


@functools.cache
def script(name):
    spec = importlib.util.spec_from_file_location(f"tf_serving_{name}", _FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    base = tmp_path_factory.mktemp("recorded")
    script("make_model").save(base)
    model = ModelOptions(base, name="m", versions=(1, 2), labels={"stable": 1, "canary": 2})
    with LocalServer(model) as server:
        return script("record").ask_all(server.grpc_address, server.rest_address)


def approximately(value):
    """Equal but for rounding of the numbers."""
    if isinstance(value, dict):
        return {key: approximately(child) for key, child in value.items()}
    if isinstance(value, list):
        return [approximately(child) for child in value]
    return pytest.approx(value, rel=1e-6, nan_ok=True) if isinstance(value, float) else value


def test_the_cases_are_those_that_were_recorded(answers):
    assert {side: set(cases) for side, cases in answers.items()} == {side: set(RECORDED[side]) for side in RECORDED}
    assert len(RECORDED["rest"]) == 67
    assert len(RECORDED["grpc"]) == 31


@pytest.mark.parametrize("name", sorted(RECORDED["rest"]))
def test_rest(answers, name):
    real, ours = RECORDED["rest"][name], answers["rest"][name]
    assert {key: ours[key] for key in ("method", "path", "body")} == {
        key: real[key] for key in ("method", "path", "body")
    }
    assert (ours["status"], ours["content_type"]) == (real["status"], real["content_type"])
    if real["status"] == 200:
        assert ours["answer"] == approximately(real["answer"])
    elif isinstance(real["answer"], dict) and real["answer"]["error"].startswith(RUNTIME):
        assert set(ours["answer"]) == {"error"}
        assert ours["answer"]["error"]
    else:
        assert ours["answer"] == real["answer"]


@pytest.mark.parametrize("name", sorted(RECORDED["grpc"]))
def test_grpc(answers, name):
    real, ours = RECORDED["grpc"][name], answers["grpc"][name]
    assert (ours["method"], ours["request"]) == (real["method"], real["request"])
    assert ours["code"] == real["code"]
    if real["code"] == "OK":
        assert ours["answer"] == approximately(real["answer"])
    elif real["details"].startswith(RUNTIME):
        assert ours["details"]
    else:
        assert ours["details"] == real["details"]
