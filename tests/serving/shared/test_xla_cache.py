"""Where what XLA compiles is kept, and how TensorFlow is told."""

import os
import shlex

import pytest

from serving.shared import xla_cache
from serving.shared.xla_cache import in_container, writable_directory, xla_flags


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program"
    path.write_text("1")
    return path


def test_each_program_and_processor_has_a_directory_of_its_own(tmp_path, program, monkeypatch):
    first = writable_directory(tmp_path / "cache", program)
    assert first is not None
    assert first.parent == tmp_path / "cache"
    assert first.is_dir()
    assert writable_directory(tmp_path / "cache", program) == first
    os.utime(program, (0, 0))  # another version
    second = writable_directory(tmp_path / "cache", program)
    monkeypatch.setattr(xla_cache, "_processor", lambda: "another")
    third = writable_directory(tmp_path / "cache", program)
    assert len({first, second, third}) == 3


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, program, monkeypatch):
    (tmp_path / "file").write_text("")
    assert writable_directory(tmp_path / "file" / "cache", program) is None
    assert writable_directory(tmp_path, tmp_path / "no program") is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert writable_directory(tmp_path, program) is None


def test_flags_that_there_are_already_come_last_and_so_hold():
    own = "--tf_xla_persistent_cache_directory=/mine --tf_xla_clustering_debug"
    flags = xla_flags("/a b", own)
    assert flags.startswith(f'{xla_cache.FLAGS}="/a b" ')
    assert flags.endswith(own)
    assert xla_flags("/a", "/file/of/flags") == "/file/of/flags"
    assert shlex.split(xla_flags('/a "quoted\\" path'))[-1].partition("=")[2] == '/a "quoted\\" path'


def test_images_have_directories_of_their_own():
    assert in_container("tensorflow/serving:2.20.0") == "/xla_cache/tensorflow-serving-2.20.0"
