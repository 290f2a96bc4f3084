"""Fixtures for the tests of the embedded server's modules."""

import pytest
import serving_models

from serving.local_server.servable import Servable


@pytest.fixture(scope="session")
def version(tmp_path_factory):
    """The directory of a version that has been written: scale 1."""
    return serving_models.save_version(tmp_path_factory.mktemp("versions") / "m", 1)


@pytest.fixture(scope="session")
def servable(version):
    """That version, loaded; not to be closed."""
    loaded = Servable(version, 1)
    yield loaded
    loaded.close()
