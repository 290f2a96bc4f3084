"""Model and configuration in, verified SavedModel out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

import exporter
from exporter.plan.choosing import Choice, choose
from exporter.config import ExportConfig, NtkConfig
from exporter.errors import ExportError
from exporter.plan.explanation import Explanation
from exporter.graph.lowering import CALLING_CONVENTION_VERSION
from exporter.artefact.manifest import SIGNATURE as MANIFEST_SIGNATURE
from exporter.artefact.manifest import manifest_signature, write_manifest
from exporter.plan.planning import Plan, make_plan
from exporter.graph.programs import functions_by_blocks, functions_of_whole_batches
from exporter.progress import Progress, SilentProgress
from exporter.graph.kernel_module import KernelModule, input_names, param_names
from exporter.graph.traced import without_graph_optimizers
from exporter.artefact.verification import Verification, verify
from exporter.artefact.versions import stage_version
from exporter.artefact.warmup import count_programs, examples_of_requests
from exporter.artefact.warmup import requests as warmup_requests
from serving.shared.warmup_file import write_requests


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
    plan = make_plan(model, ntk or NtkConfig(), export or ExportConfig())
    return Explanation(plan, choose(plan))


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
    with _disk_errors(), stage_version(Path(base_dir)) as staging:
        with progress.stage("functionalize") as note:
            plan = make_plan(model, ntk or NtkConfig(), export or ExportConfig())
            count = sum(v.size for v in plan.model.trainable.values())
            trainable, frozen = len(plan.model.trainable), len(plan.model.frozen)
            note(f"{trainable} trainable, {frozen} frozen variables, {count:,} parameters")
        with progress.stage("choose") as note:
            choice = choose(plan)
            note(choice.summary)
        with progress.stage("lower") as note, without_graph_optimizers():
            module = _build(plan, choice)
            note(", ".join(plan.export.platforms))
        requests = examples_of_requests(plan.export.signatures, choice.schedule)
        compiled = count_programs(plan.export.signatures, choice.schedule)
        with progress.stage("write") as note, without_graph_optimizers():
            _write(module, plan, staging.path, requests if plan.export.warmup else None)
            note(f"{_size(staging.path) / 2**20:.1f} MiB")
        with progress.stage("verify") as note:
            verification = verify(
                staging.path,
                plan.model,
                plan.ntk,
                plan.export.verify,
                signatures=plan.export.signatures,
                served=plan.served,
                coupled=plan.coupled,
                requests=requests,
                note=note,
            )
            programs = f"{compiled} programs, " if compiled else ""
            kinks = max(verification.at_kinks.values(), default=0.0)
            apart = f" ({kinks:.1e} at kinks)" if kinks else ""
            first_calls = verification.seconds["first_calls"]
            note(f"within {verification.worst:.1e}{apart} of float64; {programs}{first_calls:.1f} s")
        manifest = {
            **_manifest(plan, choice, verification),
            "programs": {"compiled": compiled, "warmup_examples": requests if plan.export.warmup else {}},
        }
        write_manifest(staging.path, manifest)
        return ExportResult(staging.publish(), json.loads(json.dumps(manifest)))


def _build(plan: Plan, choice: Choice) -> KernelModule:
    model, names, platforms, precision = plan.model, plan.export.signatures, plan.export.platforms, plan.ntk.precision
    if choice.schedule is None:
        kernel = plan.kernel(choice.implementation)
        functions = functions_of_whole_batches(model, kernel, names, platforms=platforms, precision=precision)
    else:
        functions = functions_by_blocks(
            model, choice.schedule, names, swap=plan.swap, platforms=platforms, precision=precision
        )
    return KernelModule(plan.served.trainable, plan.served.frozen, plan.served.inputs, functions)


def _write(module: KernelModule, plan: Plan, path: Path, warmup: Mapping[str, Sequence[int]] | None) -> None:
    functions = module.signatures_to_save
    signatures = {"serving_default": functions[plan.export.serving_default], **functions}
    del module.signatures_to_save
    with manifest_signature(module) as signatures[MANIFEST_SIGNATURE]:
        tf.saved_model.save(module, str(path), signatures, tf.saved_model.SaveOptions(save_debug_info=False))
    if warmup is not None:
        write_requests(path, warmup_requests(functions, warmup))


def _manifest(plan: Plan, choice: Choice, verification: Verification) -> dict[str, Any]:
    model = plan.model
    packages = ("tensorflow", "jax", "jaxlib", "keras", "tf-keras", "tf2jax", "neural-tangents")
    return {
        "model": model.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "configuration": {"ntk": plan.ntk.to_dict(), "export": plan.export.to_dict()},
        "inputs": [
            {**dataclasses.asdict(spec), "input": name}
            for spec, name in zip(plan.served.inputs, input_names("x", plan.served.inputs), strict=True)
        ],
        "output": dataclasses.asdict(model.output),
        "kernel": {"shape": plan.kernel_shape, "dtype": plan.kernel_dtype, "swap": plan.swap},
        "variables": {
            "trainable": {
                path: {"shape": v.shape, "dtype": v.dtype.name, "input": key}
                for (path, v), key in zip(
                    plan.served.trainable.items(), param_names(model.trainable).values(), strict=True
                )
            },
            "frozen": {
                path: {"shape": v.shape, "dtype": v.dtype.name, "excluded_by_pattern": path in model.excluded}
                for path, v in plan.served.frozen.items()
            },
        },
        "platforms": plan.export.platforms,
        "implementation": choice.implementation,
        "blocks": choice.schedule and dataclasses.asdict(choice.schedule.blocks),
        "bytes": {"features_of_an_example": choice.features_bytes, "request_at_most": choice.bytes},
        "versions": {
            "ntk-exporter": exporter.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
            "xla_call_module": CALLING_CONVENTION_VERSION,
        },
        "verification": dataclasses.asdict(verification),
    }


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Errors of writing, which Python and TF report differently, as ExportErrors."""
    full = "Writing failed: expected room for the SavedModel, received '{}'. Free disk space or change --output."
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise ExportError(full.format(error.strerror)) from error
        raise
    except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError, tf.errors.OutOfRangeError) as error:
        # "...{node} /path/of/the/file; File too large [Op:SaveV2]": EFBIG is out of range to TF.
        raise ExportError(full.format(error.message.rpartition("; ")[2].partition(" [Op:")[0])) from error
