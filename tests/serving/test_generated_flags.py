"""Whatever starts a TF Serving gives it flags that are known to do no harm, and no others."""

import itertools
import re

import pytest
import yaml
from safe_flags import SAFE

from serving.bundle.contents import BundleOptions, bundle_files
from serving.shared.model_server import HARMFUL, model_server_flags
from serving.start import main as serve_main
from serving.start.server_choice import Choice

MANIFEST = {
    "configuration": {"export": {"memory_budget": 2**30}},
    "variables": {"trainable": {"w": {"shape": [3, 3], "dtype": "float32"}}},
}
OPTIONS = [
    BundleOptions("m", cpus, gpu, batched) for cpus, gpu, batched in itertools.product((1, 4), *[(False, True)] * 2)
]


def names(flags):
    return {re.fullmatch(r"--(\w+)=.*", str(flag))[1] for flag in flags}


def test_no_flag_is_both():
    assert not SAFE.keys() & HARMFUL.keys()
    assert all(SAFE.values())


@pytest.mark.parametrize("options", OPTIONS)
def test_of_a_bundle(options):
    files = bundle_files(MANIFEST, options)
    compose = yaml.safe_load(files["compose.yaml"])
    (service,) = compose["services"].values()
    deployment, _ = yaml.safe_load_all(files["kubernetes.yaml"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    script = re.findall(r'^  "?(--\w+=.*?)"? \\$', files["serve.sh"], re.MULTILINE)
    assert names(service["command"]) == names(container["args"]) == names(script) <= SAFE.keys()
    assert "tensorflow_session_config_file" in names(script)


def test_of_all_arguments():
    everything = {"gpu": True, "threads": 2, "session_config_file": "s", "monitoring_config_file": "m"}
    for models in ({"model_base_path": "/m"}, {"model_config_file": "/c"}):
        flags = model_server_flags(**models, **everything, batching_parameters_file="b")
        assert {flag.name for flag in flags} <= SAFE.keys()


@pytest.mark.parametrize("kind", ["tensorflow_model_server", "container"])
@pytest.mark.parametrize("gpu", ["--gpu", "--nogpu"])
def test_of_ntk_serve(kind, gpu, tmp_path):
    for flag in serve_main._FLAGS:
        serve_main._FLAGS[flag].unparse()
    serve_main._COMMAND.parse(["ntk-serve", f"--model_base_path={tmp_path}", gpu])
    command = serve_main._command(Choice(kind, "", "program"), (1, 2), tmp_path, [])
    first = next(place for place, argument in enumerate(command) if argument.startswith("--port="))
    assert names(command[first:]) <= SAFE.keys()
    assert (tmp_path / "session.config").read_text()
    if kind == "container":
        assert f"--volume={tmp_path}/session.config:{tmp_path}/session.config:ro" in command
