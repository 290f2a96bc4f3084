"""What a deployment needs: each file as the program that reads it sees it."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.bundle import files as bundle
from serving.bundle import main as bundle_main
from serving.bundle.contents import BundleError, BundleOptions, bundle_files, resources
from serving.bundle.files import write_bundle
from serving.local_server.model_config import read_model_config
from serving.shared.model_server import session_config
from serving.shared.xla_cache import writable_directory, xla_flags

GIB = 2**30
MANIFEST = {
    "model": "m.keras",
    "created": "2026-11-24T00:00:00Z",
    "platforms": ["cpu"],
    "inputs": [],
    "verification": {},
    "versions": {},
    "configuration": {
        "ntk": {"vmap_axes": 0},
        "export": {"memory_budget": GIB, "signatures": ["ntk", "ntk_diagonal", "forward"]},
    },
    "variables": {"trainable": {"w": {"shape": [1024, 1024], "dtype": "float32"}}, "frozen": {}},
}
OPTIONS = BundleOptions("digits", cpus=2)


def command_of(files, name):
    documents = list(yaml.safe_load_all(files[name]))
    if name == "compose.yaml":
        (service,) = documents[0]["services"].values()
        return [*service["entrypoint"], *service["command"]]
    (container,) = documents[0]["spec"]["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]


def flags(command):
    return dict(flag.removeprefix("--").split("=", 1) for flag in command[1:])


class TestFiles:
    @pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml"])
    @pytest.mark.parametrize("options", [OPTIONS, dataclasses.replace(OPTIONS, gpu=True, batched=True)])
    def test_flags(self, name, options):
        command = command_of(bundle_files(MANIFEST, options), name)
        assert command[0] == "tensorflow_model_server"
        given = flags(command)
        assert given["xla_cpu_compilation_enabled"] == "true"
        assert given["model_config_file"] == "/models/digits/serving/models.config"
        assert given["tensorflow_session_config_file"] == "/models/digits/serving/session.config"
        assert int(given["grpc_max_threads"]) == 4
        assert ("xla_gpu_compilation_enabled" in given) == options.gpu
        batching = {"enable_batching", "enable_per_model_batching_parameters", "batching_parameters_file"}
        assert batching & set(given) == (batching if options.batched else set())

    def test_never_batches_all_models(self):
        files = bundle_files(MANIFEST, dataclasses.replace(OPTIONS, batched=True))
        for name in ("compose.yaml", "kubernetes.yaml"):
            assert flags(command_of(files, name))["enable_per_model_batching_parameters"] == "true"
        assert "--enable_per_model_batching_parameters=true" in files["serve.sh"]
        assert "allowed_batch_sizes" not in files["batching_parameters.txt"]

    def test_model_config(self):
        def models(options):
            text = bundle_files(MANIFEST, options)["models.config"]
            config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
            return {m.name: (m.base_path, m.model_platform) for m in config.model_config_list.config}

        assert models(OPTIONS) == {"digits": ("/models/digits", "tensorflow")}
        assert models(dataclasses.replace(OPTIONS, batched=True)) == {
            "digits": ("/models/digits", "tensorflow"),
            "digits_rowwise": ("/models/digits/serving/rowwise", "tensorflow"),
        }

    def test_compose(self):
        (document,) = yaml.safe_load_all(bundle_files(MANIFEST, OPTIONS)["compose.yaml"])
        (service,) = document["services"].values()
        assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]  # not open to the network
        models, cache = service["volumes"]
        assert models == {"type": "bind", "source": "..", "target": "/models/digits", "read_only": True}
        assert cache["source"] in document["volumes"]
        assert f'"{cache["target"]}/tensorflow-serving-' in service["environment"]["TF_XLA_FLAGS"]
        assert service["cpus"] == 2
        need = resources(MANIFEST, 2)
        assert service["mem_limit"] == f"{need.memory_limit // 2**20}m"
        assert "/v1/models/digits/metadata" in service["healthcheck"]["test"][-1]
        gpu = yaml.safe_load(bundle_files(MANIFEST, dataclasses.replace(OPTIONS, gpu=True))["compose.yaml"])
        (service,) = gpu["services"].values()
        assert service["image"].endswith("-gpu")
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"

    def test_health_command(self, tmp_path):
        """It is bash, and tells 200 from other answers."""
        (document,) = yaml.safe_load_all(bundle_files(MANIFEST, OPTIONS)["compose.yaml"])
        (service,) = document["services"].values()
        _, shell, option, script = service["healthcheck"]["test"]
        subprocess.run([shell, "-n", option, script], check=True)

    def test_kubernetes(self):
        deployment, service = yaml.safe_load_all(bundle_files(MANIFEST, OPTIONS)["kubernetes.yaml"])
        assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
        pod = deployment["spec"]["template"]
        assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"] == service["spec"]["selector"]
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
        assert container["readinessProbe"]["httpGet"] == {"path": "/v1/models/digits/metadata", "port": "rest"}
        assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] >= 600
        assert container["resources"]["requests"]["cpu"] == "2"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert {volume["name"] for volume in pod["spec"]["volumes"]} == set(mounts)
        (variable,) = container["env"]
        assert variable["name"] == "TF_XLA_FLAGS"
        assert f'="{mounts["xla-cache"]}/tensorflow-serving-' in variable["value"]
        assert "&" not in bundle_files(MANIFEST, OPTIONS)["kubernetes.yaml"]  # no aliases, which people do not read

    def test_resources(self):
        need = resources(MANIFEST, 2)
        weights = 4 * 2**20
        assert need.memory_request == GIB + 2 * weights + 2 * GIB
        assert need.memory_limit == GIB + 2 * weights + (need.grpc_threads + need.rest_threads) * GIB

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("digits", "ntk-digits"), ("My_Model.v2", "ntk-my-model-v2"), ("x" * 99, f"ntk-{'x' * 52}")],
    )
    def test_names_in_kubernetes(self, name, expected):
        deployment, _ = yaml.safe_load_all(bundle_files(MANIFEST, BundleOptions(name))["kubernetes.yaml"])
        assert deployment["metadata"]["name"] == expected

    @pytest.mark.parametrize("options", [{"model_name": "a/b"}, {"model_name": ""}, {"model_name": "a", "cpus": 0}])
    def test_options(self, options):
        with pytest.raises(BundleError, match="expected"):
            BundleOptions(**options)


@pytest.fixture
def base_dir(tmp_path):
    """A base directory with versions that have a manifest, in a place that shells and sed could stumble over."""
    base = tmp_path / "a b&c|d" / "digits"
    for version in ("2", "10"):
        (base / version / "assets.extra").mkdir(parents=True)
        (base / version / "assets.extra/ntk_manifest.json").write_text(json.dumps(MANIFEST))
    (base / "3").mkdir()  # not an export of this product
    return base


class TestDirectory:
    def test_is_beside_the_versions_and_no_version(self, base_dir):
        directory = write_bundle(base_dir, OPTIONS).directory
        assert directory.parent == base_dir
        assert not directory.name.isdecimal()
        assert {p.name for p in directory.iterdir()} == {
            "models.config",
            "session.config",
            "serve.sh",
            "compose.yaml",
            "kubernetes.yaml",
            "bundle.json",
        }
        assert stat.S_IMODE((directory / "serve.sh").stat().st_mode) == 0o755
        assert [p.name for p in bundle.exported_versions(base_dir)] == ["2", "10"]

    def test_script_starts_the_server(self, base_dir, tmp_path):
        directory = write_bundle(base_dir, OPTIONS).directory
        server = tmp_path / "server"
        server.write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            "print(json.dumps([os.environ['TF_XLA_FLAGS'], *sys.argv[1:]]))\n"
        )
        server.chmod(0o755)

        def serve(**variables):
            environment = {key: value for key, value in os.environ.items() if key != "TF_XLA_FLAGS"}
            done = subprocess.run(
                [directory / "serve.sh", "--port=1234"],
                capture_output=True,
                text=True,
                check=True,
                env={**environment, "TF_MODEL_SERVER": str(server), **variables},
                cwd="/",
            )
            return json.loads(done.stdout)

        xla, *command = serve()
        assert command[-1] == "--port=1234"
        given = flags(["", *command])
        (model,) = read_model_config(Path(given["model_config_file"]))
        assert (model.name, model.base_path) == ("digits", base_dir)
        assert Path(given["tensorflow_session_config_file"]).read_text() == session_config(2)
        cache = writable_directory(directory / "xla_cache", server)  # as ntk-serve would name it
        assert list((directory / "xla_cache").iterdir()) == [cache]
        assert xla.strip() == xla_flags(str(cache))
        assert serve(TF_XLA_FLAGS="--mine=1")[0] == f"{xla_flags(str(cache))} --mine=1"
        assert serve(TF_XLA_FLAGS="/file/of/flags")[0] == "/file/of/flags"

    def test_script_without_a_server(self, base_dir):
        directory = write_bundle(base_dir, OPTIONS).directory
        environment = {**os.environ, "TF_MODEL_SERVER": "no_such_program"}
        done = subprocess.run([directory / "serve.sh"], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 127
        assert done.stderr.startswith("expected tensorflow_model_server on the PATH or named by TF_MODEL_SERVER")

    def test_default_options(self, tmp_path):
        assert bundle.default_options(tmp_path / "my model!").model_name == "my-model"
        assert bundle.default_options(Path("/")).model_name == "ntk"

    def test_batched_stays_batched(self, exported, tmp_path):
        base = tmp_path / "two"
        base.mkdir()
        os.symlink(exported("two_inputs").path, base / "1")
        assert not bundle.default_options(base).batched
        directory = write_bundle(base, BundleOptions("two", batched=True)).directory
        assert (directory / "rowwise/1/saved_model.pb").is_file()
        assert bundle.default_options(base).batched
        (base / "1").rename(base / "2")
        write_bundle(base, bundle.default_options(base))
        assert [version.name for version in (directory / "rowwise").iterdir()] == ["2"]


class TestCommand:
    @pytest.fixture
    def invoke(self, capsys):
        def call(*arguments):
            for name in bundle_main._FLAGS:
                bundle_main._FLAGS[name].unparse()
            try:
                code = bundle_main.main(bundle_main._COMMAND.parse(["ntk-bundle", *map(str, arguments)]))
            except SystemExit as error:
                code = error.code
            return code, *capsys.readouterr()

        return call

    def test_writes(self, base_dir, invoke):
        code, out, err = invoke(base_dir, "--model_name=other", "--cpus=3")
        assert (code, out, err) == (0, f"{base_dir / 'serving'}\n", "")
        assert "other" in (base_dir / "serving/models.config").read_text()

    def test_flags_are_kept(self, base_dir, invoke):
        """For the next call, and for ntk-export, which writes the bundle again."""
        assert invoke(base_dir, "--model_name=other", "--cpus=3", "--gpu")[0] == 0
        assert bundle.default_options(base_dir) == BundleOptions("other", cpus=3, gpu=True)
        assert invoke(base_dir, "--nogpu", "--cpus=2")[0] == 0
        assert bundle.default_options(base_dir) == BundleOptions("other", cpus=2)
        (base_dir / "serving/bundle.json").write_text('{"options": {"cpu": 2}}')
        code, out, err = invoke(base_dir)
        assert (code, out) == (1, "")
        assert "bundle.json is damaged" in err

    def test_changed_files_are_kept(self, base_dir, invoke):
        invoke(base_dir)
        files = {name: base_dir / "serving" / name for name in ("models.config", "compose.yaml")}
        changed = files["models.config"].read_text() + "# labels\n"
        files["models.config"].write_text(changed)
        for _ in range(2):
            code, out, err = invoke(base_dir, "--cpus=7")
            assert (code, out) == (0, f"{base_dir / 'serving'}\n")
            assert err.startswith(f"kept {files['models.config']}, which was changed")
            assert files["models.config"].read_text() == changed
            assert "cpus: 7" in files["compose.yaml"].read_text()
        files["models.config"].unlink()
        assert invoke(base_dir)[2] == ""
        assert "# labels" not in files["models.config"].read_text()

    def test_a_harmful_flag(self, base_dir, invoke):
        """As bundles had it once: written again, unless somebody has changed the file."""
        harmful = "--enable_serialization_as_tensor_content"
        invoke(base_dir)
        directory = base_dir / "serving"
        record = json.loads((directory / "bundle.json").read_text())
        for name in ("serve.sh", "compose.yaml"):
            text = (directory / name).read_text().replace("--num_load_threads=1", f"{harmful}=true")
            (directory / name).write_text(text)
            record["digests"][name] = bundle._digest(text.encode())
        (directory / "bundle.json").write_text(json.dumps(record))
        with (directory / "compose.yaml").open("a") as file:
            file.write("# changed\n")
        code, _, err = invoke(base_dir)
        assert code == 0
        assert harmful not in (directory / "serve.sh").read_text()
        assert err.startswith(
            f"kept {directory / 'compose.yaml'}, which was changed; remove it to have it written. But "
        )
        assert f"a server with its flag {harmful} answers REST requests for numbers with zeros and noise" in err
        assert err.endswith("take the flag out of it\n")
        for words in (f"# no {harmful}\n", f"command: [{harmful}=false]\n"):
            (directory / "compose.yaml").write_text(words)
            assert "But" not in invoke(base_dir)[2]

    @pytest.mark.parametrize("text", ["{", "{}", "[]"])
    def test_damaged_manifest(self, base_dir, invoke, text):
        (base_dir / "10/assets.extra/ntk_manifest.json").write_text(text)
        code, out, err = invoke(base_dir)
        assert (code, out) == (1, "")
        assert "is damaged" in err
        assert not (base_dir / "serving").exists()

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ([], 2, "expected one base directory, received none"),
            (["a", "b"], 2, "received a, b"),
            (["a", "--cpu=3"], 2, "unknown flag --cpu; did you mean '--cpus'?"),
            (["nowhere"], 1, "expected a model base directory that ntk-export wrote"),
            (["nowhere", "--cpus=0"], 1, "at least 1 core"),
        ],
    )
    def test_errors(self, invoke, arguments, code, message):
        received, out, err = invoke(*arguments)
        assert (received, out) == (code, "")
        assert message in err

    def test_help(self, invoke):
        code, out, _ = invoke("--help")
        assert not code
        assert "--[no]batching" in out
