"""Settings and fixtures that all tests share."""

import atexit
import functools
import gc
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "TF_XLA_FLAGS" not in os.environ:  # in the first process of these tests: each program is compiled in one of them
    cache = tempfile.mkdtemp(prefix="ntk_tests_")
    atexit.register(shutil.rmtree, cache)
    os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={cache}"

import jax  # after the environment that it reads
import pytest

# JAX's own programs are not optimised here, which is most of the time to compile them. TensorFlow's are, and so is all
# that runs in a process of its own.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_finish():
    """Garbage is collected less often: what TensorFlow and JAX have made by now, and every trace makes, is much."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def directory_of_all_workers(tmp_path_factory):
    """For what one worker makes and all use, under a lock."""
    directory = tmp_path_factory.getbasetemp()
    return directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory


@pytest.fixture(scope="session")
def exported(directory_of_all_workers):
    """`exported(name)` is an `export_models.Exported`: made when a test first asks for it, and shared by all tests."""
    import export_models

    return functools.cache(lambda name: export_models.export(name, directory_of_all_workers))


@pytest.fixture(scope="session")
def served(exported, tmp_path_factory):
    """An embedded server of some exports, of two versions of "linear", and of "words"."""
    import serving_models

    from serving.local_server import LocalServer, ModelOptions

    base = tmp_path_factory.mktemp("served") / "linear"
    for version in (1, 2):
        serving_models.save_version(base, version, version)
    models = [ModelOptions(exported(name).path.parent, name) for name in ("two_inputs", "coupled", "all_axes")]
    models.append(ModelOptions(serving_models.save_words(base.with_name("words"), 1).parent, "words"))
    labels = {"stable": 1, "canary": 2}
    with LocalServer([*models, ModelOptions(base, "linear", num_versions=2, labels=labels)]) as server:
        yield server
