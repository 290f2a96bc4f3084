"""Importing the package is instant and imports none of the heavy libraries."""

import pathlib
import subprocess
import sys
import tomllib

import exporter

HEAVY = ("tensorflow", "jax", "jaxlib", "keras", "tf_keras", "tf2jax", "neural_tangents", "numpy", "yaml", "absl")


def imported_by(statement: str) -> tuple[float, set[str]]:
    """Milliseconds that a statement takes in a fresh process, and the heavy libraries that it imports."""
    code = (
        "import sys, time; start = time.perf_counter()\n"
        f"{statement}\n"
        f"print((time.perf_counter() - start) * 1000, *(set({HEAVY}) & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return float(output[0]), set(output[1:])


def test_importing_exporter_is_instant_and_light():
    milliseconds, modules = min(imported_by("import exporter") for _ in range(3))
    assert not modules
    assert milliseconds < 50


def test_configuration_needs_neither_tensorflow_nor_jax():
    _, modules = imported_by("from exporter import ExportConfig, ExportError, NtkConfig, load_config; load_config()")
    assert modules == {"yaml"}


def test_command_needs_neither_tensorflow_nor_jax_to_start():
    _, modules = imported_by("import exporter.command.main")
    assert modules == {"yaml", "absl"}


def test_public_names_are_listed_before_they_are_imported():
    assert set(exporter.__all__) <= set(dir(exporter))
    assert exporter.NtkConfig.__module__ == "exporter.config.sections"
    assert exporter.ExportError.__module__ == "exporter.errors"


def test_every_public_name_can_be_imported():
    _, modules = imported_by("from exporter import *; export_savedmodel, empirical_ntk_fn_tf, get_apply_fn_and_params")
    assert {"tensorflow", "jax"} <= modules


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(exporter, "export_saved_model")


def test_version_is_the_one_of_the_project():
    pyproject = pathlib.Path(exporter.__file__).parents[1] / "pyproject.toml"
    assert exporter.__version__ == tomllib.loads(pyproject.read_text())["project"]["version"]


def test_serving_is_light_until_something_needs_tensorflow():
    _, modules = imported_by(
        "import serving, serving.shared.model_server, serving.start.server_choice, serving.start.example_request"
    )
    assert not modules
    _, modules = imported_by("import serving.start.main")
    assert modules == {"absl"}


def test_the_embedded_server_runs_where_there_is_no_jax():
    code = (
        "import sys; sys.modules.update(dict.fromkeys("
        "('jax', 'jaxlib', 'keras', 'tf_keras', 'tf2jax', 'neural_tangents')))\n"
        "import serving.local_server, serving.local_server.model_config"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
