"""The SavedModel's files, and what its manifest says."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import exporter
from exporter.artefact.verification import Verification
from exporter.artefact.warmup import requests as warmup_requests
from exporter.errors import ExportError
from exporter.graph.kernel_module import KernelModule
from exporter.graph.lowering import CALLING_CONVENTION_VERSION
from exporter.plan.choosing import Choice
from exporter.plan.planning import Plan
from exporter.plan.signatures import input_names, param_names
from serving.shared import disk
from serving.shared.manifest_signature import SIGNATURE as MANIFEST_SIGNATURE
from serving.shared.manifest_signature import manifest_signature
from serving.shared.warmup_file import write_requests


def write_saved_model(module: KernelModule, plan: Plan, path: Path, warmup: Mapping[str, Sequence[int]] | None) -> None:
    """Writes a module's SavedModel into a directory; with `warmup`, numbers of examples, also those requests."""
    functions = module.signatures_to_save
    signatures = {"serving_default": functions[plan.export.serving_default], **functions}
    del module.signatures_to_save
    with manifest_signature(module) as signatures[MANIFEST_SIGNATURE]:
        tf.saved_model.save(module, str(path), signatures, tf.saved_model.SaveOptions(save_debug_info=False))
    if warmup is not None:
        write_requests(path, warmup_requests(functions, warmup, _example(plan)))


def _example(plan: Plan) -> dict[str, np.ndarray]:
    """A batch of one for each of the model's inputs, by its name in signatures; none if zeros will do."""
    if plan.model.front is None or plan.model.frozen_part is not None:
        return {}
    specs = plan.model.signature_inputs
    return dict(zip(input_names("x", specs), plan.model.examples(1), strict=True))


def describe(plan: Plan, choice: Choice, verification: Verification) -> dict[str, Any]:
    """What was exported, as the manifest has it."""
    model = plan.model
    recorded = dataclasses.asdict(verification)
    shares = recorded.pop("shares") or {"variables": None}
    packages = ("tensorflow", "jax", "jaxlib", "keras", "tf-keras", "tf2jax", "neural-tangents")
    return {
        "model": model.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "configuration": {"ntk": plan.ntk.to_dict(), "export": plan.export.to_dict()},
        "inputs": [
            {**dataclasses.asdict(spec), "input": name}
            for spec, name in zip(
                plan.model.signature_inputs, input_names("x", plan.model.signature_inputs), strict=True
            )
        ],
        "output": dataclasses.asdict(model.output),
        "kernel": {
            "shape": plan.kernel_shape,
            "dtype": plan.kernel_dtype,
            "swap": plan.swap,
            "shares": shares.pop("variables"),
            "shares_of": shares or None,
        },
        "variables": {
            "trainable": {
                path: {"shape": v.shape, "dtype": v.dtype.name, "input": key}
                for (path, v), key in zip(
                    plan.model.trainable.items(), param_names(model.trainable).values(), strict=True
                )
            },
            "frozen": {
                path: {"shape": v.shape, "dtype": v.dtype.name, "excluded_by_pattern": path in model.excluded}
                for path, v in plan.model.all_frozen.items()
            },
        },
        "platforms": plan.export.platforms,
        "implementation": choice.implementation,
        "blocks": choice.schedule and dataclasses.asdict(choice.schedule.blocks),
        "flops": choice.flops,
        "bytes": {"features_of_an_example": choice.features_bytes, "request_at_most": choice.bytes},
        "versions": {
            "ntk-exporter": exporter.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
            "xla_call_module": CALLING_CONVENTION_VERSION,
        },
        "verification": recorded,
    }


def disk_errors() -> AbstractContextManager[None]:
    """Errors of writing as ExportErrors."""
    full = "Writing failed: expected room for the SavedModel, received '{}'. Free disk space or change --output."
    return disk.disk_errors(lambda reason: ExportError(full.format(reason)))
