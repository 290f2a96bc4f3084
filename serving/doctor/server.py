"""Checks of a running server, by asking it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.client import Client, ServingError
from serving.client.errors import BATCHING_CURE
from serving.client.model import ServedModel, VersionStatus
from serving.doctor.answers import check_answers
from serving.doctor.report import Check, Outcome, bad, good, note
from serving.doctor.results import check_results

_PAIRS = {"ntk", "ntk_symmetric", "ntk_with_params"}


def check_server(client: Client, timeout: float) -> list[Check]:
    """Checks the model that a client is made for, waiting so many seconds for it to be available."""
    try:
        served = client.wait_until_ready(timeout, manifest=False)
        versions = client.status()
    except ServingError as error:
        return [bad("server", str(error))]
    checks = [_check_versions(served, versions), check_answers(client, served)]
    if checks[-1].outcome is Outcome.BAD:  # the next request could end the server
        return checks
    try:
        served = client.metadata()
    except ServingError as error:
        return [*checks, bad("manifest", str(error))]
    checks.append(_check_batching(served))
    checks.append(good("signatures", f"of version {served.version}: {', '.join(served.signatures)}"))
    if served.manifest is None:
        checks.append(
            note("results", "the server does not tell the export's manifest, so there is nothing to compare with")
        )
        return checks
    recorded = served.manifest
    exported = recorded["configuration"]["export"]["signatures"]
    missing = [name for name in exported if name not in served.signatures]
    if missing:
        checks[-1] = bad("signatures", f"expected {', '.join(exported)}; {', '.join(missing)} are missing")
    checks.append(
        good(
            "export",
            f"{recorded['model']}, exported {recorded['created']} for {', '.join(recorded['platforms'])} "
            f"by ntk-exporter {recorded['versions']['ntk-exporter']}",
        )
    )

    def call(name: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return client.predict(name, inputs)

    return checks + check_results(recorded, call, ServingError)


def _check_versions(served: ServedModel, versions: Sequence[VersionStatus]) -> Check:
    words = f"model {served.name}: versions {', '.join(map(str, versions))}"
    failed = [v for v in versions if v.error]
    if not failed:
        return good("server", words)
    if max(v.version for v in failed) < served.version:
        return note("server", f"{words}; {served.version} has replaced what failed")
    return bad("server", f"{words}. Export again; if that version was removed since, restart the server to forget it")


def _check_batching(served: ServedModel) -> Check:
    if not served.batched:
        words = "requests are not joined" if served.batched is False else "whether requests are joined is not known"
        return (good if served.batched is False else note)("batching", words)
    mixed = sorted(_PAIRS & served.signatures.keys())
    if mixed:
        return bad("batching", f"{', '.join(mixed)} would mix callers' rows. {BATCHING_CURE}")
    return good("batching", "requests are joined, of signatures whose rows are independent")
