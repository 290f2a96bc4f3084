"""Settings and fixtures that all tests share."""

import functools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # after the environment that it reads
import pytest

# JAX's own programs are not optimised here, which is most of the time to compile them. TensorFlow's are, and so is all
# that runs in a process of its own.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`exported(name)` is an `export_models.Exported`: made when a test first asks for it, and shared by all tests."""
    import export_models

    return functools.cache(lambda name: export_models.export(name, tmp_path_factory.mktemp(name)))
