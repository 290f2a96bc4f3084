"""The notebook: it runs, says what its kept outputs say, and these show on a page without a kernel."""

import os
import pathlib
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/quickstart.ipynb"
# Of zmq and of asyncio's transports, which Jupyter leaves to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quickstart")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    settings = {"PYTHONPATH": str(ROOT), "PATH": path, "JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(directory / "ipython")}
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(directory)}})
    client.execute(env={**os.environ, **settings})
    assert (directory / "quickstart/report.html").is_file()
    return notebook


def texts(notebook):
    return "".join(o["text"] for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream")


def images(notebook):
    outputs = [o["data"] for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    return [kind for data in outputs for kind in data if kind.startswith("image/")]


def numbers(notebook):
    text = texts(notebook)
    return {
        "accuracy": float(re.search(r"right on ([\d.]+)%", text)[1]),
        "same": float(re.search(r"same digit ([\d.]+)", text)[1]),
        "different": float(re.search(r"different digits ([\d.]+)", text)[1]),
        "novelty": float(re.search(r"of digits ([\d.]+),", text)[1]),
        "shuffled": float(re.search(r"pixels shuffled ([\d.]+)", text)[1]),
    }


def test_it_finds_what_it_says(executed):
    found = numbers(executed)
    assert found["accuracy"] > 90
    assert found["same"] > found["different"] + 0.1
    assert found["shuffled"] > 1.5 * found["novelty"]
    assert "quickstart/report.html" in texts(executed)
    assert len(re.findall(r"^a \d: \d at \d+%, \d at \d+%; like \[", texts(executed), re.MULTILINE)) == 3


def test_the_kept_outputs_are_of_it(kept, executed):
    expected = numbers(executed)
    assert numbers(kept) == {name: pytest.approx(value, rel=0.15) for name, value in expected.items()}
    assert images(kept) == images(executed) == ["image/png", "image/png", "image/svg+xml"]
    codes = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))


def test_nothing_of_a_machine_is_kept(kept):
    assert not re.search(r"/(tmp|home|root|work|usr|var|Users)/", texts(kept))
    assert "Traceback" not in texts(kept)
    assert NOTEBOOK.stat().st_size < 200_000
