"""The stages of a fit: data, reference, ridge, files, proof, and what it is worth."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.answers import quality, reference, targets, writing
from serving.answers.errors import FitError
from serving.answers.exported import Exported, version_of
from serving.answers.fit import Fit, fit
from serving.answers.module import AnswersModule
from serving.answers.sums import check_finite
from serving.bundle.contents import BundleError
from serving.bundle.files import default_options, write_bundle
from serving.dataset.data import Data
from serving.dataset.engine import Workers
from serving.dataset.export import Export, find_export
from serving.dataset.prepared import Prepared, Say, prepare
from serving.shared.disk import size_of
from serving.shared.exports import ManifestError, are_answers
from serving.shared.manifest_signature import write_manifest
from serving.shared.progress import waiting
from serving.shared.staging import stage_version, writable_directory


@dataclasses.dataclass(frozen=True)
class Options:
    """What is fitted, as the flags of `ntk-fit` say it."""

    export: str
    data: str
    output: Path
    method: str = "auto"
    ridge: float | None = None
    neighbors: int = 10
    keep: int | None = None
    memory: int = 1 << 30
    targets: str = "auto"
    network: str = "auto"
    holdout: str | None = None
    outliers: str | None = None
    scheduler: str | None = None
    workers: int | None = None
    worker_memory: int = 2 << 30
    wait: float = 300.0


def run_fit(options: Options, say: Say) -> Path:
    """Fits answers, and publishes them; returns the version's directory.

    Raises:
      DatasetError: it cannot be done; nothing is left below the output.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # as exports are written
    export = find_export(options.export, "forward")
    if are_answers(export.manifest):
        raise FitError(f"{export.path}: expected an export of ntk-export, received answers of ntk-fit.")
    say("export", f"{export.path}: {export.manifest['model']}")
    rows = _with_targets(options.data, export, say)
    others = {
        name: _with_targets(data, export, say) if name == "holdout" else prepare(data, export, say)
        for name, data in (("holdout", options.holdout), ("outliers", options.outliers))
        if data
    }
    if rows.data.rows < max(2, options.neighbors):
        raise FitError(
            f"{options.data}: expected at least {max(2, options.neighbors)} examples, as many as --neighbors, received "
            f"{rows.data.rows}."
        )
    exported = Exported(export)
    method = reference.choose_method(options.method, exported, rows.data.rows, options.memory)
    workers = Workers(options.scheduler, options.workers, options.wait)
    if options.scheduler and method == "exact":
        say("method", "exact, in this process: without the scheduler")
    with writing.disk_errors(options.output):
        directory = writable_directory(options.output.absolute())
        name = f".{options.output.name}.ntk-fit-{export.digest[:6]}{rows.digest[:6]}"
        store, outputs = directory / f"{name}.zarr", directory / f"{name}-outputs.zarr"
        if options.scheduler and method == "features":
            output = reference.outputs_by_workers(export, rows, outputs, workers, options.worker_memory, say)
        else:
            output = exported.rows_of("forward", rows.data, "forward")
        output, task, y = _task(options, exported, rows.data, output)
        say("targets", task.describe())
        if method == "exact":
            of_all = reference.exact(exported, rows, say)
        else:
            of_all = reference.by_features(export, rows, store, workers, options.worker_memory, say)
        with waiting("fit"):
            made = fit(
                exported,
                of_all,
                task,
                output,
                y,
                rows.data.ids(),
                ridge=options.ridge,
                neighbors=options.neighbors,
                keep=options.keep,
                memory=options.memory,
            )
        _say_ridge(made, of_all, say)
        version = _publish(options, export, exported, made, rows, others, say)
        for made_on_the_way in (store, outputs):
            shutil.rmtree(made_on_the_way, ignore_errors=True)
    return version


def _publish(
    options: Options,
    export: Export,
    exported: Exported,
    made: Fit,
    rows: Prepared,
    others: Mapping[str, Prepared],
    say: Say,
) -> Path:
    with stage_version(options.output, "ntk-fit") as staging:
        module = AnswersModule(exported, made.similarities, made.fitted)
        names = list(module.signatures_to_save)
        with waiting("write"):
            writing.write(module, exported, staging.path, exported.inputs(rows.data.read(0, 1)))
        say("write", f"{size_of(staging.path) / 2**20:,.1f} MiB; {_kept(made, rows.data.rows)}")
        examples = writing.examples(exported, rows.data.read(0, min(writing.EXAMPLES, rows.data.rows)))
        with waiting("verify"):
            model = version_of(staging.path)
            verification = writing.verify(model, exported, made, examples)
        say("verify", f"within {verification.worst:.1e} of float64 on {verification.examples} examples")
        told = {
            "export": export.digest,
            "data": {"name": options.data, "digest": rows.digest},
            "method": "features" if "table" in made.algebra else "exact",
            "references": rows.data.rows,
            **_quality(model, exported, made, rows.data, others, say),
        }
        write_manifest(staging.path, writing.manifest(exported, names, made, verification, told))
        version = staging.publish()
    try:
        options_of_bundle = dataclasses.replace(default_options(options.output), batched=True)
        say("bundle", str(write_bundle(options.output, options_of_bundle).directory))
    except (BundleError, ManifestError, OSError) as error:
        say("bundle", f"not written: {error}")
    return version


def _with_targets(data: str, export: Export, say: Say) -> Prepared:
    rows = prepare(data, export, say)
    if not rows.data.has_y:
        raise FitError(f"{data}: expected the targets 'y' beside the inputs, found none. Add them.")
    return rows


def _task(
    options: Options, exported: Exported, data: Data, output: np.ndarray
) -> tuple[np.ndarray, targets.Task, np.ndarray]:
    """The network's output (n, O), the task, and the targets as it has them."""
    shape = exported.manifest["output"]["shape"]
    if len(shape) > 2:
        raise FitError(
            f"{exported.path}: expected a network with one axis of outputs, received outputs of shape "
            f"{('n', *shape[1:])}. Export one of them with ntk.output, or a model that ends in a vector."
        )
    output = output.reshape(len(output), -1).astype(np.float64)
    check_finite(output)
    y = data.targets()
    assert y is not None
    task = targets.find_task(data.name, y, output, options.targets, options.network)
    return output, task, targets.as_task(data.name, y, task)


def _say_ridge(made: Fit, of_all: reference.Reference, say: Say) -> None:
    selection = made.selection
    mean = of_all.coordinates.trace / of_all.coordinates.count
    loss = "negative log-likelihood" if made.fitted.task.classes else "squared error"
    say("ridge", f"{selection.ridge:.3g}, {selection.ridge / mean:.1e} of the kernel's diagonal; {loss} left out:")
    if len(selection.ridges) > 1:
        low, high = selection.losses.min(), selection.losses.max()
        for ridge, value in list(zip(selection.ridges, selection.losses, strict=True))[::4]:
            bar = "█" * round(40 * (value - low) / (high - low or 1))
            say("", f"{ridge:10.3g}  {value:<12.5g}{bar}{'  ← chosen near here' * _nearest_to(selection, ridge)}")


def _nearest_to(selection: Any, ridge: float) -> bool:
    shown = selection.ridges[::4]
    return bool(ridge == shown[np.argmin(np.abs(np.log(shown / selection.ridge)))])


def _kept(made: Fit, count: int) -> str:
    kept = f"{len(made.kept):,} of {count:,} reference examples kept" if len(made.kept) < count else "all kept"
    return f"{kept} in {made.table}"


def _quality(
    model: Any, exported: Exported, made: Fit, data: Data, others: Mapping[str, Prepared], say: Say
) -> dict[str, Any]:
    """What the answers are worth, left out and on other examples, in lines and for the manifest."""
    task, said = made.fitted.task, made.left_out_quality
    _say_quality("left out", said, say)
    told: dict[str, Any] = {"leave_one_out": dict(said), "coverage": said.get("coverage"), "calibration": None}
    told |= {"holdout": None, "outliers": None}
    if task.classes:
        told["calibration"] = {name: said[name] for name in ("nll", "ece")}
    if not others:
        return told

    def predicted(data: Data) -> dict[str, np.ndarray]:
        answers = (model.signatures["predict"](**inputs) for inputs in exported.batches(data))
        parts = [{key: value.numpy() for key, value in part.items()} for part in answers]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    novelty: np.ndarray | None = None
    if holdout := others.get("holdout"):
        y = holdout.data.targets()
        assert y is not None
        y = targets.as_task(holdout.data.name, y, task)
        answers = predicted(holdout.data)
        novelty = answers["novelty"]
        output = exported.rows_of("forward", holdout.data, "forward").reshape(len(y), -1)
        if task.classes:
            ours = quality.of_classes(answers["mean"], y)
            network = quality.of_classes(task.probabilities(task.logits(output)), y)
        else:
            ours, network = quality.of_numbers(answers["mean"], y, answers["variance"]), quality.of_numbers(output, y)
        told["holdout"] = {**ours, "network": network, "examples": len(y)}
        _say_quality("holdout", ours, say)
        _say_quality("network", network, say)
    if outliers := others.get("outliers"):
        inside = predicted(data)["novelty"] if novelty is None else novelty
        area = quality.auroc(inside, predicted(outliers.data)["novelty"])
        against = "reference examples" if novelty is None else "holdout"
        told["outliers"] = {"auroc": area, "against": against, "examples": outliers.data.rows}
        say("outliers", f"novelty tells them from the {against} with an AUROC of {area:.3f}")
    return told


def _say_quality(word: str, said: Mapping[str, Any], say: Say) -> None:
    parts = []
    if "accuracy" in said:
        parts.append(f"accuracy {said['accuracy']:.1%}")
        parts.append(f"negative log-likelihood {said['nll']:.4f}, expected calibration error {said['ece']:.4f}")
    if "rmse" in said:
        network = f" ({said['rmse_with_network']:.4g} of the network too)" if "rmse_with_network" in said else ""
        parts.append(f"root mean square error {said['rmse']:.4g}{network}")
    if coverage := said.get("coverage"):
        parts.append(f"within 1 and 2 standard deviations {coverage['1']:.0%} and {coverage['2']:.0%} (68% and 95%)")
    say(word, ", ".join(parts))
