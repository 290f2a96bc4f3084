import threading

import grpc
import pytest
from tensorflow_serving.apis import model_pb2

from serving.local_server.errors import ServingError, invalid_argument
from serving.local_server.manager import ModelManager, State
from serving.local_server.options import ModelOptions


class FakeServable:
    def __init__(self, path, version):
        self.path, self.version, self.closed = path, version, 0

    def close(self):
        self.closed += 1


class Loader:
    """Loads FakeServables; `bad` has the errors of versions that do not load."""

    def __init__(self):
        self.loaded, self.attempts, self.bad = {}, [], {}

    def __call__(self, path, version):
        self.attempts.append(version)
        if version in self.bad:
            raise self.bad[version]
        self.loaded[version] = FakeServable(path, version)
        return self.loaded[version]


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def manager(tmp_path, loader):
    (tmp_path / "1").mkdir()
    manager = ModelManager(ModelOptions(tmp_path, name="m", labels={"stable": 1, "lost": 99}), 0, loader)
    manager.start()
    yield manager
    manager.stop()


def spec(version=None, label=None):
    result = model_pb2.ModelSpec(name="m")
    if version is not None:
        result.version.value = version
    if label is not None:
        result.version_label = label
    return result


def state(manager, version):
    return State.Name({status.version: status for status in manager.statuses()}[version].state)


def test_lookup(manager, loader):
    for asked in (spec(), spec(version=1), spec(label="stable")):
        with manager.lookup(asked) as servable:
            assert servable is loader.loaded[1]


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (spec(version=2), "NOT_FOUND", "Servable not found for request: Specific(m, 2)"),
        (spec(version=0), "NOT_FOUND", "Servable not found for request: Specific(m, 0)"),
        (spec(label="nobody"), "INVALID_ARGUMENT", "Unrecognized servable version label: nobody"),
        (spec(label="lost"), "NOT_FOUND", "Servable not found for request: Specific(m, 99)"),
    ],
)
def test_what_is_not_served(manager, asked, code, message):
    with pytest.raises(ServingError) as error, manager.lookup(asked):
        pass
    assert (error.value.code.name, str(error.value)) == (code, message)


def test_a_new_version_takes_over_and_the_old_one_is_freed(manager, loader, tmp_path):
    (tmp_path / "2").mkdir()
    manager.poll()
    assert manager.available() == [2]
    assert loader.loaded[1].closed == 1
    assert [state(manager, version) for version in (1, 2)] == ["END", "AVAILABLE"]
    manager.poll()
    assert loader.attempts == [1, 2]


def test_a_request_keeps_its_version_until_it_ends(manager, loader, tmp_path):
    with manager.lookup(spec()) as servable, manager.lookup(spec()):
        (tmp_path / "2").mkdir()
        manager.poll()
        assert servable.version == 1
        assert not servable.closed
        assert state(manager, 1) == "UNLOADING"
        with manager.lookup(spec()) as newest:
            assert newest.version == 2
        with pytest.raises(ServingError), manager.lookup(spec(version=1)):
            pass
    assert loader.loaded[1].closed == 1
    assert state(manager, 1) == "END"


def test_while_a_version_is_loaded_the_old_one_serves(tmp_path, loader):
    (tmp_path / "1").mkdir()
    seen = []

    def load(path, version):
        if version == 2:
            with manager.lookup(spec()) as servable:
                seen.append((servable.version, state(manager, 2)))
        return loader(path, version)

    manager = ModelManager(ModelOptions(tmp_path, name="m"), 0, load)
    manager.start()
    (tmp_path / "2").mkdir()
    manager.poll()
    assert seen == [(1, "LOADING")]
    manager.stop()


def test_a_version_that_does_not_load_is_tried_again_when_its_files_change(manager, loader, tmp_path):
    (tmp_path / "2").mkdir()
    loader.bad[2] = invalid_argument("no such file")
    for _ in range(3):
        manager.poll()
    assert loader.attempts == [1, 2]
    assert manager.available() == [1]
    (status, _) = manager.statuses()
    assert (status.version, status.state, status.message) == (2, State.END, "no such file")
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    del loader.bad[2]
    (tmp_path / "2" / "saved_model.pb").write_text("written now")
    manager.poll()
    assert manager.available() == [2]
    assert state(manager, 2) == "AVAILABLE"


def test_an_error_of_any_kind_is_shown(manager, loader, tmp_path):
    (tmp_path / "2").mkdir()
    loader.bad[2] = OSError()
    manager.poll()
    status = manager.statuses()[0]
    assert (status.code, status.message) == (grpc.StatusCode.UNKNOWN, "OSError")


def test_a_version_that_is_removed_is_freed(manager, loader, tmp_path):
    (tmp_path / "2").mkdir()
    manager.poll()
    (tmp_path / "2").rmdir()
    manager.poll()
    assert manager.available() == [1]
    assert loader.attempts == [1, 2, 1]


def test_a_base_directory_that_cannot_be_read_changes_nothing(manager, tmp_path):
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    manager.poll()
    assert manager.available() == [1]


def test_stop_frees_all(manager, loader):
    manager.stop()
    assert loader.loaded[1].closed == 1
    assert manager.available() == []


def test_versions_appear_by_themselves(tmp_path, loader):
    (tmp_path / "1").mkdir()
    manager = ModelManager(ModelOptions(tmp_path, name="m"), 0.005, loader)
    manager.start()
    (tmp_path / "2").mkdir()
    ended = threading.Event()
    for _ in range(1000):
        if manager.available() == [2] or ended.wait(0.01):
            break
    manager.stop(10)
    assert loader.loaded[2].closed == 1
