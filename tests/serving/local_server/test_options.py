import dataclasses
import pathlib

import pytest

from serving.local_server.options import ModelOptions, ServerOptions


def test_the_defaults_are_valid_and_local():
    assert ServerOptions().host == "127.0.0.1"
    assert ModelOptions("base") == ModelOptions(pathlib.Path("base"), "default")


def test_all_problems_are_told_together():
    with pytest.raises(ValueError, match=r"^rest_port: expected 0 to 65535, got 70000\nmax_queue: .* got -1$"):
        ServerOptions(rest_port=70000, max_queue=-1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("name", "a/b"), ("name", "a:b"), ("versions", (0,)), ("num_versions", 0)],
)
def test_model_options_that_make_no_sense(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        ModelOptions("base", **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", ""),
        ("grpc_port", -1),
        ("poll_seconds", -1),
        ("max_message_bytes", 1 << 31),
        ("max_concurrency", 0),
        ("body_seconds", 0),
        ("rest_timeout_seconds", 0),
        ("shutdown_seconds", -1),
    ],
)
def test_server_options_that_make_no_sense(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        ServerOptions(**{field: value})


def test_options_do_not_change():
    labels = {"stable": 1}
    options = ModelOptions("base", labels=labels)
    labels["stable"] = 2
    assert options.labels == {"stable": 1}
    with pytest.raises(TypeError):
        options.labels["stable"] = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.name = "x"
