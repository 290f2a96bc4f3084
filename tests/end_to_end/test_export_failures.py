"""What cannot be exported leaves nothing."""

import contextlib
import errno
import os
import re
import subprocess
import sys
import textwrap

import export_models
import models
import pytest
import tensorflow as tf

from exporter.artefact.versions import stage_version
from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.export import export_savedmodel
from exporter.progress import SilentProgress


@pytest.mark.parametrize("vmap_axes", ["auto", 0])
def test_coupled_examples_are_found(tmp_path, vmap_axes):
    with pytest.raises(ExportError) as error:
        export_savedmodel(export_models.coupled(), tmp_path / "base", NtkConfig(vmap_axes=vmap_axes))
    assert re.fullmatch(
        r"Examples influence each other: expected the output of an example not to depend on the others of its batch "
        rf"\(ntk\.vmap_axes: {vmap_axes}\), received a change of [0-9.e-]+ \(relative\) when the others changed\. Set "
        r"ntk\.vmap_axes: null for the kernel of whole batches, or remove what couples them \(batch statistics, "
        r"reductions over the batch axis\)\.",
        str(error.value),
    )
    assert os.listdir(tmp_path) == []


def test_failed_verification_leaves_nothing(tmp_path):
    config = export_models.small("16KiB", signatures="ntk_diagonal", verify={"examples": 2, "rtol": 1e-12})
    ntk = NtkConfig(implementation="structured_derivatives")
    with pytest.raises(ExportError, match=r"^Verification failed: expected signature ntk_diagonal within 1e-12 of"):
        export_savedmodel(models.by_id("mlp").build(), tmp_path / "base", ntk, config)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("shapes", [None, (3, 4), {"image": (3,)}])
def test_sizes_that_do_not_fit_leave_nothing(tmp_path, shapes):
    with pytest.raises(ExportError, match=r"export\.input_shapes"):
        export_savedmodel(export_models.lstm(), tmp_path / "base", export=ExportConfig(input_shapes=shapes))
    assert os.listdir(tmp_path) == []


EXPORT = """
    import resource, sys
    import models
    from exporter import ExportConfig, ExportError, NtkConfig, export_savedmodel
    from exporter.command.terminal import ConsoleProgress
    model = models.by_id("mlp").build()
    limit = int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    ntk = NtkConfig(implementation="structured_derivatives")
    config = ExportConfig(platforms="cpu", signatures="ntk_diagonal", memory_budget="16KiB")
    try:
        export_savedmodel(model, sys.argv[1], ntk, config, progress=ConsoleProgress())
    except ExportError as error:
        sys.exit(str(error))
"""


def export_in_a_process(base_dir, limit=0):
    """An export of which no file may have more bytes than `limit`, as on a disk that is full."""
    command = [sys.executable, "-c", textwrap.dedent(EXPORT), str(base_dir), str(limit)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.path.dirname(models.__file__)])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FULL = "Writing failed: expected room for the SavedModel, received {!r}. Free disk space or change --output."


def test_full_disk(tmp_path):
    process = export_in_a_process(tmp_path / "base", limit=100)
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.strip().splitlines()[-1] == FULL.format("File too large")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "/base/version/saved_model.pb.tmp1; No space left on device"),
        tf.errors.OutOfRangeError(
            None, None, "{{node SaveV2}} /base/variables/part; No space left on device [Op:SaveV2]"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_full_disk_as_python_and_tensorflow_report_it(tmp_path, error):
    class Fails(SilentProgress):
        @contextlib.contextmanager
        def stage(self, name):
            raise error
            yield

    with pytest.raises(ExportError) as raised:
        export_savedmodel(models.by_id("mlp").build(), tmp_path / "base", progress=Fails())
    assert str(raised.value) == FULL.format("No space left on device")
    assert os.listdir(tmp_path) == []


def test_killed_export_leaves_no_version_and_the_next_removes_the_rest(tmp_path):
    process = export_in_a_process(tmp_path / "base")
    while not process.stdout.readline().startswith("write "):  # the SavedModel lies in its staging directory
        assert process.poll() is None
    process.kill()
    process.communicate()
    (left_over,) = os.listdir(tmp_path)
    assert left_over.startswith(".base.")
    assert (tmp_path / left_over / "version" / "saved_model.pb").exists()
    with stage_version(tmp_path / "base"):
        assert left_over not in os.listdir(tmp_path)
    assert os.listdir(tmp_path) == []
