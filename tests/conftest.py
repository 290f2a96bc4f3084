"""Settings and fixtures that all tests share."""

import functools
import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`exported(name)` is an `export_models.Exported`: made when a test first asks for it, and shared by all tests."""
    import export_models

    return functools.cache(lambda name: export_models.export(name, tmp_path_factory.mktemp(name)))
