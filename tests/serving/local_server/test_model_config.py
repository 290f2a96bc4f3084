import pytest

from serving.local_server.model_config import read_model_config
from serving.local_server.options import ModelOptions


def written(path, text):
    path = path / "models.config"
    path.write_text(text)
    return path


def test_models_policies_and_labels(tmp_path):
    config = written(
        tmp_path,
        """model_config_list {
          config { name: "a" base_path: "/a" model_platform: "tensorflow" }
          config { name: "b" base_path: "/b" model_version_policy { latest { num_versions: 2 } } }
          config { name: "c" base_path: "/c" model_version_policy { all {} } }
          config {
            name: "d" base_path: "/d" model_version_policy { specific { versions: 1 versions: 2 } }
            version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }
          }
        }""",
    )
    assert read_model_config(config) == [
        ModelOptions("/a", name="a"),
        ModelOptions("/b", name="b", num_versions=2),
        ModelOptions("/c", name="c", num_versions=None),
        ModelOptions("/d", name="d", versions=(1, 2), labels={"stable": 1, "canary": 2}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected model_config_list with at least one config"),
        ("model_config_lost {}", "expected a ModelServerConfig in text format: 1:1 : .*model_config_lost"),
        ('model_config_list { config { name: "a" } }', "model a: expected a base_path"),
        ('model_config_list { config { base_path: "/a" } }', "name: expected a name"),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "sklearn" } }',
            "model a: expected model_platform 'tensorflow', received 'sklearn'",
        ),
    ],
)
def test_what_is_no_config(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"models.config: {message}"):
        read_model_config(written(tmp_path, text))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_model_config(tmp_path / "nothing")
