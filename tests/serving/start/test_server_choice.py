import pytest

from serving.shared.xla_cache import xla_flags
from serving.start.server_choice import choose, container_command

IMAGE = "tensorflow/serving:x"


def chosen(wanted, *, programs=(), environment=(), images=()):
    choice = choose(
        wanted,
        IMAGE,
        environment=dict(environment),
        which=lambda name: (
            f"/bin/{name}" if name in programs else name if name in map("/bin/{}".format, programs) else None
        ),
        has_image=lambda runtime, image: (runtime, image) in images,
    )
    return choice.kind, choice.program


BINARY = "tensorflow_model_server"


@pytest.mark.parametrize(
    ("surroundings", "expected"),
    [
        ({}, ("embedded", "")),
        ({"programs": [BINARY, "docker"]}, (BINARY, f"/bin/{BINARY}")),
        ({"programs": ["docker"]}, ("embedded", "")),
        ({"programs": ["docker"], "images": [("/bin/docker", IMAGE)]}, ("container", "/bin/docker")),
        ({"programs": ["podman"], "images": [("/bin/podman", IMAGE)]}, ("container", "/bin/podman")),
        ({"programs": ["mine"], "environment": [("TF_MODEL_SERVER", "/bin/mine")]}, (BINARY, "/bin/mine")),
    ],
)
def test_auto_takes_the_first_that_is_here(surroundings, expected):
    assert chosen("auto", **surroundings) == expected


def test_what_is_asked_for_is_taken():
    programs = [BINARY, "docker"]
    assert chosen("embedded", programs=programs) == ("embedded", "")
    assert chosen(BINARY, programs=programs) == (BINARY, f"/bin/{BINARY}")
    assert chosen("container", programs=programs) == ("container", "/bin/docker")


@pytest.mark.parametrize(
    ("wanted", "environment", "message"),
    [
        (BINARY, {}, "expected tensorflow_model_server on the PATH .* or --server=embedded"),
        ("container", {}, "expected docker or podman on the PATH"),
        ("auto", {"TF_MODEL_SERVER": "/nothing"}, "TF_MODEL_SERVER: expected an executable, found none at /nothing"),
    ],
)
def test_what_is_not_here_is_an_error_with_its_cure(wanted, environment, message):
    with pytest.raises(LookupError, match=message):
        chosen(wanted, environment=environment)


def test_the_command_of_a_container():
    command = container_command("docker", IMAGE, "127.0.0.1", [1, 2], ["/models"], ["--port=1"], gpu=False)
    assert command == [
        *("docker", "run", "--rm", "--init", "--publish=127.0.0.1:1:1", "--publish=127.0.0.1:2:2"),
        *("--volume=/models:/models:ro", "--volume=ntk_xla_cache:/xla_cache"),
        f"--env=TF_XLA_FLAGS={xla_flags('/xla_cache/tensorflow-serving-x')}",
        *("--entrypoint=tensorflow_model_server", IMAGE, "--port=1"),
    ]
    other = container_command("docker", IMAGE, "127.0.0.1", [], [], [], gpu=True, keep_compiled=False)
    assert "--gpus=all" in other
    assert not any("xla" in argument for argument in other)
