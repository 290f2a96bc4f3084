import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import export_models
import numpy as np
import pytest
import tensorflow as tf

import exporter.artefact.oracle
import exporter.artefact.verification
from exporter.artefact import expected
from exporter.artefact.reloading import ReloadingProcess
from exporter.artefact.verification import verify
from exporter.config import ExportConfig, NtkConfig, VerifyConfig
from exporter.errors import ExportError
from exporter.ntk.reference_features import reference_features
from exporter.plan.planning import make_plan
from serving.shared.reference import examples

RTOL = 1e-4
SCRIPT = pathlib.Path(exporter.artefact.verification.__file__).with_name("reload_script.py")


class Linear(tf.Module):
    """Outputs x W and the bias: its kernel is x1 x2ᵀ + 1, whatever the weights are."""

    def __init__(self):
        super().__init__(name="linear")
        self.w = tf.Variable(np.random.default_rng(0).standard_normal((4, 3)), dtype=tf.float32)
        self.b = tf.Variable([0.5, 1.0, -1.0])

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        return x @ self.w + self.b


@pytest.fixture(scope="module")
def plan():
    return make_plan(Linear(), NtkConfig(), ExportConfig())


def check(plan, path, signatures=("ntk_symmetric",), examples=8, rtol=RTOL, requests=None, **kwargs):
    with ReloadingProcess() as process:
        return verify(
            process,
            path,
            plan.model,
            plan.ntk,
            VerifyConfig(examples=examples, rtol=rtol),
            signatures=signatures,
            coupled=plan.coupled,
            requests=requests or {},
            sketch=plan.sketch if "ntk_features" in signatures else None,
            **kwargs,
        )


class Answering:
    """In place of the process: it gives these results."""

    def __init__(self, results):
        self.results = results

    def start(self, *args, **kwargs):
        def results(told):
            told(1, 2)
            return self.results, {"load": 1.0}

        return results


def answer(monkeypatch, results):
    process = contextlib.nullcontext(Answering(results))
    monkeypatch.setattr(sys.modules[__name__], "ReloadingProcess", lambda: process)


@pytest.fixture
def answers(monkeypatch):
    """Makes verify believe that the SavedModel answers this."""

    def believe(**outputs):
        results = {f"{kind}/{name}": np.float32(value) for name, value in outputs.items() for kind in KINDS}
        answer(monkeypatch, results)

    return believe


KINDS = ("signature", "method")


def right_kernel(plan, n=8):
    (x,) = plan.model.examples(n)
    return x.astype(np.float64) @ x.T + 1


def test_tells_how_far_it_is(plan, answers):
    answers(ntk_symmetric=right_kernel(plan))
    notes = []
    check(plan, None, note=lambda *note: notes.append(note))
    assert notes[0] == ("3 float64 gradients, 24 for a kernel", 3, 24)  # of 8 examples with 3 outputs
    assert notes[-3:] == [
        ("24 float64 gradients, 24 for a kernel", 24, 24),
        ("the SavedModel, in a process of its own",),
        ("1 of 2 calls of the SavedModel, in a process of its own", 1, 2),
    ]


# Written SavedModels


def test_right_saved_model(exported):
    one = exported("cnn")
    signatures = one.plan.export.signatures
    requests = {name: [1, 4, 17] for name in signatures}
    verification = check(one.plan, one.path, signatures, examples=3, requests=requests)
    assert verification.examples == 3
    assert set(verification.errors) == {f"{kind}/{name}" for kind in KINDS for name in signatures}
    assert 0 < verification.worst == max(verification.errors.values()) < 1e-5
    assert verification.asymmetry < 1e-6
    assert 0 < verification.smallest_eigenvalue < 1
    assert set(verification.seconds) == {"load", "first_calls", "all"}
    assert all(seconds > 0 for seconds in verification.seconds.values())


def test_methods_of_expensive_kernels_are_called_without_examples(exported, monkeypatch):
    monkeypatch.setattr(exporter.artefact.verification, "_LONG_REQUEST", 1.0)
    one = exported("cnn")
    signatures = one.plan.export.signatures
    verification = check(one.plan, one.path, signatures, examples=3, flops=1.0)
    methods = [f"method/{name}" for name in signatures if name != "forward"]
    assert verification.left_out == methods
    assert set(verification.errors) == {f"{kind}/{name}" for kind in KINDS for name in signatures} - {*methods}
    assert verification.worst < 1e-5


def test_method_that_is_not_empty_without_examples(plan, answers, monkeypatch):
    monkeypatch.setattr(exporter.artefact.verification, "_LONG_REQUEST", 1.0)
    answers(ntk_symmetric=right_kernel(plan))
    with pytest.raises(ExportError, match=r"without examples of shape \(0, 0\), received \(8, 8\)"):
        check(plan, None, flops=1.0)


def test_wrong_only_for_many_examples(plan, answers, monkeypatch):
    kernel = right_kernel(plan)
    many = np.float32(kernel)[np.ix_(np.arange(20) % 8, np.arange(20) % 8)]
    results = {"signature/ntk_symmetric": np.float32(kernel), "signature/ntk_symmetric/20": many.copy()}
    answer(monkeypatch, results)
    requests = {"ntk_symmetric": [20]}
    assert check(plan, "nowhere", requests=requests).worst < RTOL
    results["signature/ntk_symmetric/20"][19, 3] += 0.1
    with pytest.raises(ExportError, match=r"furthest at \[19, 3\]"):
        check(plan, "nowhere", requests=requests)


def test_process_ends_with_the_one_that_started_it(tmp_path):
    """Else a killed export leaves one behind that computes for minutes."""
    waits = tmp_path / "inputs.npz"
    os.mkfifo(waits)
    line = json.dumps(["nowhere", str(waits), "nowhere", "nowhere"])
    started = f"""if True:
        import subprocess, sys, time
        no = subprocess.DEVNULL
        process = subprocess.Popen([sys.executable, "-P", {str(SCRIPT)!r}], stdin=subprocess.PIPE, stdout=no, stderr=no)
        process.stdin.write({line!r}.encode() + b"\\n")
        process.stdin.flush()
        print(process.pid)
        time.sleep(1)
    """
    pid = int(subprocess.run([sys.executable, "-c", started], capture_output=True, check=True).stdout)
    for _ in range(300):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            time.sleep(0.1)
            continue
        break
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it runs on")


def test_other_values_in_a_variable(exported, tmp_path):
    one = exported("two_inputs")
    model = tf.saved_model.load(str(one.path))
    path = next(path for path in model.params if path.endswith("kernel"))
    model.params[path].assign(1.5 * model.params[path])
    tf.saved_model.save(model, str(tmp_path), dict(model.signatures))
    with pytest.raises(ExportError) as error:
        check(one.plan, tmp_path, ("ntk_diagonal", "ntk"))
    found = re.fullmatch(
        r"Verification failed: expected signature ntk_diagonal within 0\.0001 of float64 \(relative to its largest "
        r"entry\), received a difference of (?P<error>\S+); furthest at \[(?P<where>\d)\]: (?P<value>\S+), "
        r"where float64 gives (?P<expected>\S+)\. Choose another ntk\.implementation or ntk\.precision, or a larger "
        r"export\.verify\.rtol\.",
        str(error.value),
    )
    assert found, error.value
    x = one.plan.model.examples(8)
    received, expected = model.ntk_diagonal(list(x)).numpy(), np.diag(one.reference(x))
    where = np.argmax(np.abs(received - expected))
    assert int(found["where"]) == where
    assert float(found["value"]) == pytest.approx(received[where], rel=1e-5)
    assert float(found["expected"]) == pytest.approx(expected[where], rel=1e-5)
    largest = np.max(np.abs(expected))
    assert float(found["error"]) == pytest.approx(abs(received[where] - expected[where]) / largest, rel=1e-2)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_saved_model_that_cannot_be_loaded(plan, tmp_path, damage):
    if damage == "cut":
        (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12")
    with pytest.raises(ExportError) as error:
        check(plan, tmp_path)
    assert re.fullmatch(
        r"Verification failed: expected the SavedModel to load and run in a process that can import TensorFlow alone, "
        r"received exit code 1: (OSError|google\.protobuf\.message\.DecodeError): .*",
        str(error.value),
    )
    assert "Traceback" not in str(error.value)


# Kinks


class Kinked(Linear):
    """Two units of a ReLU; the input of the first is `at`, up to rounding, for the sixth example."""

    def __init__(self, at=0.0):
        super().__init__()
        self.x = examples([((None, 4), "float32")], 8)[0].astype(np.float64)
        w = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
        self.w = tf.Variable(w)
        self.b = tf.Variable(np.float32([at - self.x[5] @ w[:, 0], 0.5]))

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        return tf.nn.relu(x @ self.w + self.b)

    def kernels(self):
        """In closed form, the right one and that with the sixth example on the other side of the kink."""
        on = self.x @ self.w.numpy() + self.b.numpy() > 0
        other = on.copy()
        other[5, 0] ^= True
        return [(self.x @ self.x.T + 1) * (side.astype(float) @ side.T) / 2 for side in (on, other)]


def kinked(at=0.0):
    model = Kinked(at)
    return *model.kernels(), make_plan(model, NtkConfig(), ExportConfig())


def test_activation_within_rounding_of_its_kink(answers):
    """float32 may find it on the other side, which is no fault of the kernel."""
    right, other, plan = kinked()
    answers(ntk_symmetric=right)
    assert check(plan, "nowhere").at_kinks == {}
    answers(ntk_symmetric=other)
    verification = check(plan, "nowhere")
    assert verification.worst < 1e-6
    jump = np.max(np.abs(other - right)) / np.max(np.abs(right))
    assert jump > 0.1
    assert verification.at_kinks == pytest.approx({f"{kind}/ntk_symmetric": jump for kind in KINDS}, rel=1e-5)


def test_kinks_are_looked_for_where_and_as_long_as_something_is_off(answers, monkeypatch):
    """Of a large model each float64 evaluation takes a minute."""
    right, other, plan = kinked()
    asked = []
    of = expected.Expected.of
    monkeypatch.setattr(
        expected.Expected, "of", lambda self, names, *args: asked.append(list(names)) or of(self, names, *args)
    )
    names = ("ntk_symmetric", "ntk_diagonal")
    answers(ntk_symmetric=other, ntk_diagonal=np.diag(right))
    check(plan, "nowhere", names)
    assert asked == [list(names), *[["ntk_symmetric"]] * 2]


def test_activation_that_is_not_near_enough_to_its_kink(answers):
    _, other, plan = kinked(1e-3)
    answers(ntk_symmetric=other)
    with pytest.raises(ExportError, match="furthest at"):
        check(plan, "nowhere")


def test_other_entries_than_those_at_the_kink(answers):
    _, other, plan = kinked()
    other[2, 3] += 1e-2
    answers(ntk_symmetric=other)
    with pytest.raises(ExportError, match=r"furthest at \[2, 3\]"):
        check(plan, "nowhere")


def test_more_than_the_jump_of_a_kink(answers):
    right, other, plan = kinked()
    answers(ntk_symmetric=right + 1.5 * (other - right))
    with pytest.raises(ExportError, match=r"furthest at \[\d, \d\]"):
        check(plan, "nowhere")


def test_features_of_an_example_at_a_kink(answers):
    """A unit beyond its kink changes all of an example's features, by amounts that are random in each of them."""
    _, _, plan = kinked()
    model = plan.model
    features = reference_features(
        model.apply_fn, model.trainable, model.frozen, model.examples(8), plan.sketch, trace_axes=(1,)
    )
    off = np.zeros_like(features)
    off[5, 7] = 1e-2 * np.max(np.abs(features))
    answers(ntk_features=features + off)
    verification = check(plan, "nowhere", ("ntk_features",))
    assert verification.at_kinks == pytest.approx({f"{kind}/ntk_features": 1e-2 for kind in KINDS}, rel=1e-5)
    answers(ntk_features=features + np.roll(off, 1, 0))
    with pytest.raises(ExportError, match=r"furthest at \[6, 7\]"):
        check(plan, "nowhere", ("ntk_features",))


def test_ill_conditioned_is_no_kink(answers):
    """float32 of a function as steep as this is wrong everywhere, and float64 changes smoothly with its input."""

    class Steep(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable([1.0, 0.5, -0.25, 2.0])

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def __call__(self, x):
            return tf.sin(3e4 * tf.reduce_sum(self.w * x, -1, keepdims=True))

    plan = make_plan(Steep(), NtkConfig(), ExportConfig(verify=VerifyConfig(rtol=0.1)))
    (x,) = (a.astype(np.float64) for a in plan.model.examples(8))
    (w,) = plan.model.trainable.values()
    slope = 3e4 * np.cos(3e4 * (x @ w.astype(np.float64)) + 3e-3)
    answers(ntk_symmetric=(slope[:, None] * slope) * (x @ x.T))
    with pytest.raises(ExportError, match="furthest at"):
        check(plan, "nowhere", rtol=1e-3)


# What it computed


def test_difference_that_is_allowed(plan, answers):
    kernel = right_kernel(plan)
    answers(ntk_symmetric=kernel * (1 + 0.9 * RTOL))
    verification = check(plan, "nowhere")
    assert verification.errors["method/ntk_symmetric"] == pytest.approx(0.9 * RTOL, rel=1e-2)


def test_one_wrong_entry(plan, answers):
    kernel = right_kernel(plan)
    kernel[5, 2] += 0.25
    answers(ntk_symmetric=kernel)
    difference = 0.25 / np.max(np.abs(right_kernel(plan)))
    with pytest.raises(ExportError) as error:
        check(plan, "nowhere")
    assert f"received a difference of {difference:.3g}; furthest at [5, 2]: {kernel[5, 2]:.4f}"[:-2] in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite(plan, answers, value):
    kernel = right_kernel(plan)
    kernel[0, 3] += 1.0
    kernel[4, 1] = value
    answers(ntk_symmetric=kernel)
    with pytest.raises(ExportError, match=rf"received a difference of inf; furthest at \[4, 1\]: {value}"):
        check(plan, "nowhere")


def test_wrong_shape(plan, answers):
    answers(ntk_symmetric=right_kernel(plan)[:, :7])
    message = r"^Verification failed: expected signature ntk_symmetric of shape \(8, 8\), received \(8, 7\)\.$"
    with pytest.raises(ExportError, match=message):
        check(plan, "nowhere")


def test_kernel_that_is_not_symmetric(plan, answers):
    kernel = right_kernel(plan)
    error = 0.8 * RTOL * np.max(np.abs(kernel))  # each entry is near enough by itself
    kernel[1, 6] += error
    kernel[6, 1] -= error
    answers(ntk_symmetric=kernel)
    message = r"expected ntk_symmetric to equal its transpose to 0\.0001 of its largest entry, received .* of 0\.00016"
    with pytest.raises(ExportError, match=message):
        check(plan, "nowhere")


def test_kernel_that_is_not_positive_semidefinite(plan, answers):
    kernel = right_kernel(plan)
    null = np.sign(np.linalg.eigh(kernel)[1][:, 0])  # of rank 5 for 8 examples: other directions have eigenvalue 0
    kernel -= 0.9 * RTOL * np.max(np.abs(kernel)) * np.outer(null, null)
    answers(ntk_symmetric=kernel)
    message = r"to be positive semidefinite up to rounding \(0\.0001\), received an eigenvalue of -0\.000\d+ relative"
    with pytest.raises(ExportError, match=message):
        check(plan, "nowhere")


def test_kernel_of_zeros_is_compared_absolutely(plan, answers, monkeypatch):
    monkeypatch.setattr(exporter.artefact.oracle, "reference_ntk", lambda *args, **kwargs: np.zeros((8, 8)))
    answers(ntk_symmetric=np.zeros((8, 8)))
    assert check(plan, "nowhere").worst == 0
    answers(ntk_symmetric=np.full((8, 8), 1e-3))
    with pytest.raises(ExportError, match=r"received a difference of 0\.001"):
        check(plan, "nowhere")


def test_spectrum_of_kept_and_diagonal_axes(exported):
    """A matrix of examples and kept outputs for each position of a diagonal axis."""
    one = exported("all_axes")
    verification = one.result.manifest["verification"]
    assert verification["asymmetry"] < 1e-6
    assert -1e-6 < verification["smallest_eigenvalue"] < 1


def test_without_the_symmetric_kernel_there_is_no_spectrum(plan, answers):
    answers(ntk_diagonal=np.diag(right_kernel(plan)))
    verification = check(plan, "nowhere", ("ntk_diagonal",))
    assert verification.asymmetry is None
    assert verification.smallest_eigenvalue is None


def test_one_example(plan, answers):
    answers(ntk_symmetric=right_kernel(plan, 1), ntk=right_kernel(plan, 1))
    assert check(plan, "nowhere", ("ntk_symmetric", "ntk"), examples=1).worst < RTOL


def test_coupled_examples_are_compared_as_whole_batches(answers):
    """The kernel of 8 with 5 examples is no part of that of 8 with 8."""
    plan = make_plan(export_models.coupled(), NtkConfig(vmap_axes=None), ExportConfig())
    (x,) = plan.model.examples(8)
    reference = exporter.artefact.oracle.reference_ntk
    model = plan.model
    kernels = [
        reference(model.apply_fn, model.trainable, model.frozen, (x,), (x[:n],), coupled=True, **plan.axes)
        for n in (5, 8)
    ]
    answers(ntk=kernels[0])
    assert check(plan, "nowhere", ("ntk",)).worst < 1e-6
    answers(ntk=kernels[1][:, :5])
    with pytest.raises(ExportError, match="expected signature ntk within"):
        check(plan, "nowhere", ("ntk",))
