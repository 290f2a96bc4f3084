"""TensorFlow as commands import it: fast, and with all that user code may ask of it later."""

import subprocess
import sys
from pathlib import Path

import serving

SCRIPT = """
import sys
from serving.shared.quiet import import_tensorflow_quietly
import_tensorflow_quietly()
assert "tensorflow" in sys.modules
assert "keras" not in sys.modules
from tensorflow.keras import layers
assert layers.Dense(3).units == 3
"""


def test_keras_is_imported_when_it_is_asked_for():
    root = Path(serving.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
