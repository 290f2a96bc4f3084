"""A version of answers: its files, what its manifest says, and the proof that it is right."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.answers.errors import FitError
from serving.answers.exported import Exported
from serving.answers.fit import Fit
from serving.answers.module import AnswersModule
from serving.dataset.data import Rows
from serving.shared import batching_parameters, disk, manifest_signature, reference
from serving.shared.staging import StagingError
from serving.shared.warmup_file import request_of_one_value, write_requests

RTOL = 1e-4
EXAMPLES = 4  # of verification, from the reference; where numbers can be anything as many that are like nothing in it


def write(module: AnswersModule, exported: Exported, path: Path, example: Mapping[str, tf.Tensor]) -> None:
    """Writes the SavedModel into a directory; `example` is a batch of one, for warmup requests of texts."""
    functions = module.signatures_to_save
    signatures = {"serving_default": functions["predict"], **functions}
    del module.signatures_to_save
    with manifest_signature.manifest_signature(module, batched=True) as signatures[manifest_signature.SIGNATURE]:
        tf.saved_model.save(module, str(path), signatures, tf.saved_model.SaveOptions(save_debug_info=False))
    blocks = exported.manifest["blocks"]
    sizes = [*blocks["sizes"], *([blocks["sizes"][-1] + 1] if blocks["joined"] > 1 else [])]
    write_requests(path, _warmup(functions, sizes, example))
    (path / batching_parameters.FILE).write_text(str(batching_parameters.of_rows()), encoding="utf-8")


def _warmup(functions: Mapping[str, Any], sizes: Sequence[int], example: Mapping[str, tf.Tensor]) -> Iterator[Any]:
    """Requests that reach every XLA program by one signature, and once each other one, for its graph."""
    texts = {name: value.numpy().flat[0] for name, value in example.items() if value.dtype == tf.string}
    for k, signature in enumerate(functions):
        for size in sizes if k == 0 else [1]:
            specs = {n: tf.TensorSpec([size, *value.shape[1:]], value.dtype) for n, value in example.items()}
            yield request_of_one_value(signature, specs, texts)


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
      examples: number of them.
      differences: of each output from float64, relative to its largest value.
      reference: what float64 gives for these examples, by signature and output.
      inputs: the examples, if they are small enough to be recorded.
    """

    examples: int
    differences: dict[str, float]
    reference: dict[str, Any]
    inputs: Any

    @property
    def worst(self) -> float:
        """The largest difference."""
        return max(self.differences.values())


def verify(model: Any, exported: Exported, fit: Fit, examples: Mapping[str, tf.Tensor]) -> Verification:
    """Compares what was written, and loaded again, with float64 algebra of the numbers that it is made of.

    Raises:
      FitError: it is not right.
    """
    expected = _expected(exported, fit, examples)
    differences: dict[str, float] = {}
    recorded = {}
    for name, outputs in expected.items():
        given = model.signatures[name](**examples)
        method = getattr(model, name)(list(examples.values()) if len(examples) > 1 else next(iter(examples.values())))
        for output, value in outputs.items():
            kept = reference.record(value)
            for found in (given[output], method[output]):
                difference = reference.difference(kept, found.numpy())
                differences[f"{name}/{output}"] = max(difference, differences.get(f"{name}/{output}", 0.0))
            recorded[f"{name}/{output}"] = kept
    wrong = {key: difference for key, difference in differences.items() if not difference <= RTOL}
    if wrong:
        key, largest = max(wrong.items(), key=lambda item: item[1])
        raise FitError(
            f"The written answers are not right: {key} differs from float64 by {largest:.1e}, expected {RTOL:g}. "
            "Nothing was published. If the ridge was given, raise it."
        )
    inputs = reference.record_examples([value.numpy() for value in examples.values()])
    return Verification(len(next(iter(expected.values()))["mean"]), differences, recorded, inputs)


def _expected(exported: Exported, fit: Fit, inputs: Mapping[str, tf.Tensor]) -> dict[str, dict[str, np.ndarray]]:
    """Every output in float64, but for ids: which of equal examples come first does not matter."""
    fitted, task = fit.fitted, fit.fitted.task
    output = exported.call("forward", inputs).numpy().reshape(-1, task.outputs)
    kernel, added, latent, prior = _regressed(exported, fit, inputs)
    novelty = np.where(prior > 0, np.minimum(latent / np.where(prior > 0, prior, 1), 1), 1)
    if task.classes:
        variance = fitted.scale * latent
        logits = task.logits(output)
        mean = task.probabilities(logits, variance)
        chosen = np.zeros(len(logits), int) if task.outputs == 1 else logits.argmax(-1)
    else:
        variance, mean = fitted.scale * (latent + fitted.ridge), output.astype(np.float64) + added
        chosen = np.abs(added).argmax(-1)
    norms = np.sqrt(prior)[:, None] * fitted.norms
    cosines = np.where(norms > 0, kernel / np.where(norms > 0, norms, 1), 0)
    weights = kernel * fitted.weights.T[chosen]
    order = np.argsort(-np.abs(weights), 1, kind="stable")[:, : fitted.neighbors]
    expected = {
        "predict": {"mean": mean, "variance": variance, "novelty": novelty},
        "nearest": {"similarity": -np.sort(-cosines, 1)[:, : fitted.neighbors]},
        "support": {"weight": np.take_along_axis(weights, order, 1)},
        "forward": {"output": exported.call("forward", inputs).numpy()},
    }
    if exported.has("ntk_features"):
        expected["ntk_features"] = {"features": exported.call("ntk_features", inputs).numpy()}
    return expected


def _regressed(exported: Exported, fit: Fit, inputs: Mapping[str, tf.Tensor]) -> tuple[np.ndarray, ...]:
    """The kernel with what is kept, what is added, latent and prior variance, in float64."""
    matrices = fit.algebra
    if "table" in matrices:
        features = exported.call("ntk_features", inputs).numpy().astype(np.float64)
        kernel, prior = features @ matrices["table"].astype(np.float64).T, np.square(features).sum(-1)
        latent = np.maximum(prior - np.square(features @ matrices["known"]).sum(-1), 0)
        return kernel, features @ matrices["mean"], latent, prior
    kernel = fit.similarities.seen(inputs).numpy().astype(np.float64)
    prior = exported.call("ntk_diagonal", inputs).numpy().astype(np.float64)
    latent = np.maximum(prior - np.square(kernel @ matrices["inverse_root"]).sum(-1), 0)
    return kernel, kernel @ matrices["weights"], latent, prior


def manifest(
    exported: Exported, signatures: Sequence[str], fit: Fit, verification: Verification, told: Mapping[str, Any]
) -> dict[str, Any]:
    """What was fitted, as its `ntk_manifest.json` has it: the export's, with its own signatures and `answers`."""
    of_export = exported.manifest
    configuration = {
        **of_export["configuration"],
        "export": {**of_export["configuration"]["export"], "signatures": list(signatures)},
    }
    packages = ("tensorflow", "numpy")
    fitted, selection = fit.fitted, fit.selection
    return {
        **{key: value for key, value in of_export.items() if key not in ("verification", "trace", "programs")},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "configuration": configuration,
        "versions": {**of_export["versions"], **{name: importlib.metadata.version(name) for name in packages}},
        "verification": {
            "examples": verification.examples,
            "rtol": RTOL,
            "differences": verification.differences,
            "reference": verification.reference,
            "inputs": verification.inputs,
        },
        "answers": {
            "task": "classification" if fitted.task.classes else "regression",
            "network_output": fitted.task.network,
            "kept": len(fit.kept),
            "dtype": fit.table,
            "neighbors": fitted.neighbors,
            "ridge": fitted.ridge,
            "scale": fitted.scale,
            "ridge_curve": {"ridge": selection.ridges.tolist(), "loss": selection.losses.tolist()},
            **told,
        },
    }


def examples(exported: Exported, rows: Rows) -> dict[str, tf.Tensor]:
    """What verification asks about."""
    inputs = exported.inputs(rows)
    if any(value.dtype == tf.string for value in inputs.values()):
        return inputs
    specs = [((None, *value.shape[1:]), value.dtype.name) for value in inputs.values()]
    others = reference.examples(specs, EXAMPLES)
    return {name: tf.concat([value, other], 0) for (name, value), other in zip(inputs.items(), others, strict=True)}


@contextlib.contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Errors of writing, and of directories that cannot be written to, as FitErrors."""

    def told(reason: str) -> FitError:
        return FitError(
            f"Writing below {output.parent} failed: expected room for the answers, received {reason!r}. Free disk "
            "space or change --output; features that are computed stay."
        )

    try:
        with disk.disk_errors(told):
            yield
    except StagingError as error:
        raise FitError(str(error)) from error
