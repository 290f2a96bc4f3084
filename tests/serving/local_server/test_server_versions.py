import os

import pytest

from serving.local_server import versions
from serving.local_server.options import ModelOptions


def test_versions_are_directories_with_a_number_for_a_name(tmp_path):
    for name in ("1", "12", "003", "x", "1.5", "-1", ".tmp", "２", str(1 << 63), "1" * 250):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    assert versions.on_disk(tmp_path) == {1: tmp_path / "1", 12: tmp_path / "12", 3: tmp_path / "003"}


def test_a_missing_base_directory(tmp_path):
    with pytest.raises(OSError, match="nothing"):
        versions.on_disk(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [12]),
        ({"num_versions": 2}, [12, 3]),
        ({"num_versions": None}, [12, 3, 1]),
        ({"versions": (1, 3, 99)}, [3, 1]),
    ],
)
def test_which_versions_are_wanted(tmp_path, options, expected):
    found = {number: tmp_path / str(number) for number in (1, 3, 12)}
    wanted = versions.aspired(found, ModelOptions(tmp_path, **options))
    assert list(wanted.items()) == [(number, found[number]) for number in expected]


def test_a_fingerprint_changes_with_the_files(tmp_path):
    seen = [versions.fingerprint(tmp_path)]
    (tmp_path / "variables").mkdir()
    for name in ("saved_model.pb", "variables/variables.index"):
        (tmp_path / name).write_text("1")
        seen.append(versions.fingerprint(tmp_path))
    (tmp_path / "saved_model.pb").write_text("22")
    seen.append(versions.fingerprint(tmp_path))
    os.utime(tmp_path / "saved_model.pb", (1, 1))
    seen.append(versions.fingerprint(tmp_path))
    assert len(set(seen)) == len(seen)
    assert versions.fingerprint(tmp_path) == seen[-1]
