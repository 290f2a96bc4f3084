"""That no request compiles anything after the warmup, counted by the files of XLA's persistent cache."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import exporter
from exporter.ntk.kernel import Undivided
from exporter.plan.schedule import Blocks, Schedule, count_programs, examples_of_requests, warmup_examples
from serving.loading import load
from serving.shared.warmup_file import FILE, read_requests

ROOT = Path(exporter.__file__).parents[1]
ALL = ("ntk", "ntk_symmetric", "ntk_diagonal", "ntk_with_params", "forward")


SCHEDULE = Schedule(Undivided(None, ({}, {}), ()), Blocks((1, 4, 16), resident=3))
WITH_LARGER = dataclasses.replace(SCHEDULE, larger=Schedule(Undivided(None, ({}, {}), ()), Blocks((16,), resident=12)))


def test_requests_reach_every_block():
    sizes = [1, 4, 16, 17]
    assert examples_of_requests(ALL, SCHEDULE) == {name: [1] if name == "ntk_with_params" else sizes for name in ALL}
    joined = dataclasses.replace(SCHEDULE, blocks=Blocks((1, 4, 16), resident=3, joined=2))
    assert examples_of_requests(("ntk", "forward"), joined) == {"ntk": [1, 4, 16, 17, 33], "forward": sizes}
    assert examples_of_requests(("ntk_with_params",), SCHEDULE) == {"ntk_with_params": sizes}
    assert examples_of_requests(("ntk", "forward"), None) == {"ntk": [1], "forward": [1]}


def test_warmup_reaches_every_program_by_the_least_work():
    once = [1, 4, 16]
    assert warmup_examples(ALL, SCHEDULE) == {
        "ntk": once,
        "ntk_symmetric": [1],
        "ntk_diagonal": once,
        "ntk_with_params": [1],
        "forward": once,
    }
    joined = dataclasses.replace(WITH_LARGER, blocks=Blocks((1, 4, 16), resident=3, joined=2))
    assert warmup_examples(("ntk_symmetric", "forward"), joined) == {"ntk_symmetric": [*once, 17, 0], "forward": once}
    assert warmup_examples(("ntk", "forward"), None) == {"ntk": [1], "forward": [1]}


def test_requests_without_examples_reach_the_programs_for_large_ones():
    asked = examples_of_requests(ALL, WITH_LARGER)
    assert {name for name, counts in asked.items() if 0 in counts} == {"ntk", "ntk_symmetric"}


@pytest.mark.parametrize(
    ("signatures", "kinds", "larger"),
    [
        (ALL, 4, 2),
        (("ntk", "ntk_symmetric", "ntk_with_params"), 2, 2),
        (("ntk_diagonal",), 2, 0),
        (("forward",), 1, 0),
    ],
)
def test_number_of_programs(signatures, kinds, larger):
    assert count_programs(signatures, SCHEDULE) == 3 * kinds
    assert count_programs(signatures, WITH_LARGER) == 3 * kinds + larger
    assert count_programs(signatures, None) is None
    joined = dataclasses.replace(SCHEDULE, blocks=Blocks((1, 4, 16), resident=3, joined=2))
    assert count_programs(signatures, joined) == 3 * kinds + (larger > 0)


@pytest.mark.parametrize("name", ["two_inputs", "coupled", "float64"])
def test_every_request_is_one_that_its_signature_takes(exported, name):
    one = exported(name)
    asked: dict[str, list[int]] = {}
    for k, request in enumerate(read_requests(one.path)):
        signature = request.model_spec.signature_name
        assert (signature == "ntk_manifest") == (k == 0)
        specs = one.loaded.signatures[signature].structured_input_signature[1]
        assert set(request.inputs) == set(specs)
        arrays = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
        assert all(specs[key].is_compatible_with(tf.constant(array)) for key, array in arrays.items())
        if k > 0:
            assert not any(np.any(array) for array in arrays.values())
            examples = {len(array) for key, array in arrays.items() if not key.startswith(("params_", "x2"))}
            assert all(len(array) == min(1, *examples) for key, array in arrays.items() if key.startswith("x2"))
            asked.setdefault(signature, []).extend(examples)
    assert asked == one.result.manifest["programs"]["warmup_examples"]
    assert set(asked) == set(one.plan.export.signatures)


def test_the_file_is_small(exported):
    assert (exported("cnn").path / FILE).stat().st_size < 20_000


def test_loading_a_damaged_file(exported, tmp_path):
    one = exported("cnn")
    tf.io.gfile.makedirs(str(tmp_path / "assets.extra"))
    (tmp_path / FILE).write_bytes(b"no records, but long enough to be taken for one")
    with pytest.raises(ValueError, match="is no file of warmup requests: "):
        list(read_requests(tmp_path))
    assert list(read_requests(tmp_path / "nothing")) == []
    assert load(one.path).ntk is not None


_SCRIPT = """
import sys
sys.modules["keras"] = None
import json, resource, numpy as np, pathlib, serving, tensorflow as tf
def programs():
    return len(list(pathlib.Path(sys.argv[2]).iterdir()))
def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
model = serving.load(sys.argv[1], warmup=True)
warm = programs()
rng = np.random.default_rng(0)
x = rng.standard_normal((300, 6)).astype(np.float32)
full, forward = model.ntk_symmetric(x).numpy(), model.forward(x).numpy()
scale = np.max(np.abs(full))
worst, sizes = 0.0, []
def difference(k, n1, n2):
    x1, x2 = x[:n1], x[:n2]
    if k % 5 == 0:
        return model.ntk(x1, x2) - full[:n1, :n2]
    if k % 5 == 1:
        return model.signatures["ntk"](x1=tf.constant(x1), x2=tf.constant(x2))["ntk"] - full[:n1, :n2]
    if k % 5 == 2:
        return model.ntk_symmetric(x1) - full[:n1, :n1]
    if k % 5 == 3:
        return model.ntk_diagonal(x1) - np.diag(full)[:n1]
    return model.forward(x1) - forward[:n1]
for k in range(60):
    worst = max(worst, np.max(np.abs(difference(k, *rng.integers(0, 301, 2))), initial=0.0))
    if k in (20, 59):
        sizes.append(megabytes())
model.ntk_with_params(x[:70], x[:3], dict(model.params))
np.save(sys.argv[3], full)
print(json.dumps(dict(warm=warm, later=programs(), worst=float(worst / scale), growth=sizes[1] / sizes[0])))
"""


def test_no_request_compiles_anything_after_the_warmup(exported, tmp_path):
    """And a later process with the same cache compiles nothing at all."""
    one = exported("many_outputs")
    cache, kernel = tmp_path / "cache", tmp_path / "kernel.npy"

    def run(script, *arguments):
        environment = {
            "TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={cache}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PATH": "/usr/bin:/bin",
        }
        command = [sys.executable, "-c", script, str(one.path), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    measured = json.loads(run(_SCRIPT, cache, kernel).splitlines()[-1])
    assert measured["warm"] == measured["later"] == one.result.manifest["programs"]["compiled"] == 4 * 3 + 2 + 1 + 2
    assert measured["worst"] < 1e-6
    assert measured["growth"] < 1.05
    x = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    one.assert_close(np.load(kernel), one.reference((x,)))
    written = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    run("import sys; sys.modules['keras'] = None; import serving; serving.load(sys.argv[1], warmup=True)")
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == written
