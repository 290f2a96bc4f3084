"""Runs the stages: model and configuration in, verified SavedModel out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from exporter.artefact.reloading import ReloadingProcess
from exporter.artefact.trace_error import MOST_EXAMPLES, trace_error
from exporter.artefact.verification import planned, verify
from exporter.artefact.versions import stage_version
from exporter.artefact.writing import describe, disk_errors, write_saved_model
from exporter.config import ExportConfig, NtkConfig
from exporter.graph.building import build_module
from exporter.graph.traced import without_graph_optimizers
from exporter.plan.choosing import Choice, choose
from exporter.plan.explanation import Explanation
from exporter.plan.limits import memory_errors
from exporter.plan.planning import Plan, make_plan
from exporter.plan.schedule import count_programs, examples_of_requests, warmup_examples
from exporter.progress import Progress, SilentProgress
from serving.shared.disk import size_of
from serving.shared.manifest_signature import write_manifest


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """An export that succeeded.

    Attributes:
      path: the new version's directory.
      manifest: what was exported, as its `assets.extra/ntk_manifest.json` has it.
    """

    path: Path
    manifest: dict[str, Any]


def explain(model: Any, ntk: NtkConfig | None = None, export: ExportConfig | None = None) -> Explanation:
    """What an export would do, without exporting; `str` of it is for people.

    Raises:
      ExportError: the model or the configuration cannot be exported.
    """
    with memory_errors():
        plan = make_plan(model, ntk or NtkConfig(), export or ExportConfig())
        with plan.tracing():
            choice = choose(plan)
            return Explanation(
                plan, choice, planned(plan.differentiated, plan.ntk, plan.export.verify, **_checks(plan, choice))
            )


def export_savedmodel(
    model: Any,
    base_dir: str | Path,
    ntk: NtkConfig | None = None,
    export: ExportConfig | None = None,
    *,
    progress: Progress | None = None,
) -> ExportResult:
    """Writes the kernel of a model as the next version under `base_dir`, and verifies it.

    Args:
      model: what `exporter.functionalize.functionalize` takes: a Keras model, `tf.Module`, `tf.function`, ...
      base_dir: model base directory as TF Serving wants it, made if it does not exist.
      ntk: which kernel.
      export: what is written.
      progress: told of each stage.

    Returns:
      The path of the new version and its manifest.

    Raises:
      ExportError: the model, the configuration or the directory cannot be used, or the written SavedModel is not
        right; nothing is left under `base_dir` then.
    """
    progress = progress or SilentProgress()
    with disk_errors(), memory_errors(), stage_version(Path(base_dir)) as staging, ReloadingProcess() as process:
        with progress.stage("functionalize") as note:
            plan = make_plan(model, ntk or NtkConfig(), export or ExportConfig())
            count = sum(v.size for v in plan.model.trainable.values())
            trainable, frozen = len(plan.model.trainable), len(plan.model.all_frozen)
            note(f"{trainable} trainable, {frozen} frozen variables, {count:,} parameters")
        with progress.stage("choose") as note, plan.tracing():
            choice = choose(plan, note)
            note(choice.summary + plan.projection_warning)
        with progress.stage("lower") as note, plan.tracing(), without_graph_optimizers():
            module = build_module(plan, choice, note)
            note(", ".join(plan.export.platforms))
        reaching = warmup_examples(plan.export.signatures, choice.schedule)
        compiled = count_programs(plan.export.signatures, choice.schedule)
        with progress.stage("write") as note, without_graph_optimizers():
            write_saved_model(module, plan, staging.path, reaching if plan.export.warmup else None)
            note(f"{size_of(staging.path) / 2**20:.1f} MiB")
        with progress.stage("verify") as note, plan.tracing():
            verification = verify(
                process,
                staging.path,
                plan.differentiated,
                plan.ntk,
                plan.export.verify,
                **_checks(plan, choice),
                forward=plan.model,
                sketch=plan.sketch,
                note=note,
            )
            programs = f"{compiled} programs, " if compiled else ""
            error = trace_error(plan, min(verification.examples, MOST_EXAMPLES), verification.trace_deviation)
            estimated = f"; {error.summary}" if error else ""
            note(f"{verification.summary}{estimated}; {programs}{verification.seconds['first_calls']:.1f} s")
        manifest = {
            **describe(plan, choice, verification),
            "trace": error and dataclasses.asdict(error),
            "programs": {"compiled": compiled, "warmup_examples": reaching if plan.export.warmup else {}},
        }
        write_manifest(staging.path, manifest)
        return ExportResult(staging.publish(), json.loads(json.dumps(manifest)))


def _checks(plan: Plan, choice: Choice) -> dict[str, Any]:
    """What is verified, and by which requests."""
    names = plan.export.signatures
    return {
        "signatures": names,
        "coupled": plan.coupled,
        "requests": examples_of_requests(names, choice.schedule),
        "reaching": warmup_examples(names, choice.schedule),
        "flops": plan.flops_of_example,
        "narrowed": plan.narrowed,
        "frozen_flops": 0.0 if plan.model.frozen_part is None else plan.model.frozen_part.flops_of_example,
    }
