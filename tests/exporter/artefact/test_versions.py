import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from exporter.artefact.versions import stage_version
from exporter.errors import ExportError


def write_version(base_dir, text="a model"):
    with stage_version(base_dir) as staging:
        (staging.path / "saved_model.pb").write_text(text)
        return staging.publish()


def names(directory):
    """All that lies in a directory, hidden files too."""
    return sorted(os.listdir(directory))


def start(code, *arguments):
    """A Python process that has printed a line, and goes on when it is sent one."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end(process):
    process.stdin.close()
    process.stdout.close()
    return process.wait()


STAGE_AND_WAIT = """
import sys
from exporter.artefact.versions import stage_version
with stage_version(sys.argv[1]) as staging:
    (staging.path / "saved_model.pb").write_text(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    print(staging.publish(), flush=True)
"""


def test_versions_are_numbered_from_1(tmp_path):
    base_dir = tmp_path / "models" / "mine"
    assert [write_version(base_dir, str(k)) for k in range(3)] == [base_dir / "1", base_dir / "2", base_dir / "3"]
    assert [(base_dir / name / "saved_model.pb").read_text() for name in names(base_dir)] == ["0", "1", "2"]
    assert names(tmp_path) == ["models"]
    assert names(tmp_path / "models") == ["mine"]


def test_next_version_follows_the_largest_number(tmp_path):
    for name in ("2", "10", "03", "notes", "11.tmp", "-12"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    assert write_version(tmp_path) == tmp_path / "11"


def test_base_directory_given_as_text_and_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_version("models/../models/") == tmp_path / "models" / "1"
    assert write_version(".") == tmp_path / "1"


def test_nothing_is_seen_before_it_is_published(tmp_path):
    with stage_version(tmp_path / "base") as staging:
        (staging.path / "half").touch()
        assert not (tmp_path / "base").exists()
        path = staging.publish()
        assert names(tmp_path / "base") == ["1"]
        assert names(path) == ["half"]


@pytest.mark.parametrize("error", [ExportError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_failure_leaves_nothing(tmp_path, error, exists):
    base_dir = tmp_path / "models" / "base"
    if exists:
        write_version(base_dir)
    before = sorted(tmp_path.rglob("*"))

    def fail():
        with stage_version(base_dir) as staging:
            (staging.path / "variables").mkdir()
            (staging.path / "variables" / "index").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert sorted(tmp_path.rglob("*")) == before


def test_two_at_once_get_different_versions(tmp_path):
    base_dir = tmp_path / "base"
    processes = [start(STAGE_AND_WAIT, base_dir, text) for text in ("a", "b", "c")]
    paths = []
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        paths.append(process.stdout.readline().strip())
        assert end(process) == 0
    assert sorted(paths) == [str(base_dir / name) for name in "123"]
    assert sorted((base_dir / name / "saved_model.pb").read_text() for name in "123") == ["a", "b", "c"]
    assert names(tmp_path) == ["base"]


def test_number_taken_in_between(tmp_path, monkeypatch):
    """Another export publishes after this one has looked which number is free."""
    rename, taken = os.rename, []

    def rename_after_another(source, target):
        if not taken:
            taken.append(target)
            pathlib.Path(target).mkdir(parents=True)
            (pathlib.Path(target) / "saved_model.pb").touch()
        rename(source, target)

    with stage_version(tmp_path / "base") as staging:
        monkeypatch.setattr(os, "rename", rename_after_another)
        assert staging.publish() == tmp_path / "base" / "2"


@pytest.mark.parametrize("exists", [False, True])
def test_next_export_removes_what_a_killed_one_left(tmp_path, exists):
    base_dir = tmp_path / "base"
    if exists:
        base_dir.mkdir()
    process = start(STAGE_AND_WAIT, base_dir, "killed")
    assert len(names(tmp_path)) == 1 + exists
    process.kill()
    assert end(process) == -signal.SIGKILL
    assert len(names(tmp_path)) == 1 + exists  # it could not clean up
    assert not exists or names(base_dir) == []
    assert write_version(base_dir) == base_dir / "1"
    assert names(tmp_path) == ["base"]
    assert names(base_dir) == ["1"]


def test_what_a_killed_one_left_is_removed_when_the_next_fails(tmp_path):
    process = start(STAGE_AND_WAIT, tmp_path / "base", "killed")
    process.kill()
    end(process)
    with pytest.raises(ExportError), stage_version(tmp_path / "base"):
        raise ExportError
    assert names(tmp_path) == []


def test_export_that_runs_is_left_alone(tmp_path):
    base_dir = tmp_path / "base"
    process = start(STAGE_AND_WAIT, base_dir, "the slow one")
    assert write_version(base_dir, "the fast one") == base_dir / "1"
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == f"{base_dir / '2'}\n"
    assert end(process) == 0
    assert (base_dir / "2" / "saved_model.pb").read_text() == "the slow one"
    assert names(tmp_path) == ["base"]


def test_directories_of_others_are_left_alone(tmp_path):
    others = [".other.ntk-export-abc", ".base.tmp", "base.ntk-export-abc"]
    for name in others:
        (tmp_path / name).mkdir()
    write_version(tmp_path / "base")
    assert names(tmp_path) == sorted(["base", *others])


def test_lock_lasts_as_long_as_the_staging(tmp_path):
    with stage_version(tmp_path / "base") as staging:
        descriptor = os.open(staging.path.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def test_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "file").write_text("kept")
    for base_dir in (tmp_path / "file", tmp_path / "file" / "models" / "base"):
        with pytest.raises(ExportError) as error, stage_version(base_dir):
            pass
        assert str(error.value) == (
            f"The output is not a directory: expected a model base directory, received {base_dir}, where "
            f"{tmp_path / 'file'} is a file. Choose another --output."
        )
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


STAGE_WITHOUT_PRIVILEGES = """
import os, sys
from exporter.errors import ExportError
from exporter.artefact.versions import stage_version
if os.getuid() == 0:  # root may write everywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    with stage_version(sys.argv[1]) as staging:
        print(staging.path.parent.parent, staging.publish())
except ExportError as error:
    print(error)
"""


@pytest.fixture
def readable_by_all():
    """A directory that a user without privileges can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield pathlib.Path(directory)


def stage_without_privileges(base_dir):
    command = [sys.executable, "-c", STAGE_WITHOUT_PRIVILEGES, str(base_dir)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def cannot_write(directory):
    return (
        f"The output directory cannot be written to: expected write permission, received {directory}, which is not "
        "writable for this user. Choose another --output or change the permissions."
    )


def test_directory_that_cannot_be_written_to(readable_by_all):
    directory = readable_by_all / "models"
    directory.mkdir()
    directory.chmod(0o555)
    assert stage_without_privileges(directory) == cannot_write(directory)
    assert stage_without_privileges(directory / "new" / "base") == cannot_write(directory)
    directory.chmod(0o755)
    assert names(readable_by_all) == ["models"]
    assert names(directory) == []


def test_base_directory_in_one_that_cannot_be_written_to(readable_by_all):
    """The version is written inside of the base directory then, under a name that is none of a version."""
    directory = readable_by_all / "models" / "base"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    directory.parent.chmod(0o555)
    assert stage_without_privileges(directory) == f"{directory} {directory / '1'}"
    assert names(directory) == ["1"]
    directory.parent.chmod(0o755)


@pytest.mark.parametrize("exists", [False, True])
def test_failure_of_the_last_step_leaves_nothing(tmp_path, monkeypatch, exists):
    base_dir = tmp_path / "models" / "base"
    if exists:
        base_dir.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))

    def fails(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match="No space left"):
        write_version(base_dir)
    assert sorted(tmp_path.rglob("*")) == before
