"""What an export would do, as text: the plan, the programs and their memory, the kernel's sites and their costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exporter.ntk.layerwise.costs import SiteCost
from exporter.ntk.layerwise.engine import LayerwiseParts
from exporter.plan.choosing import Choice
from exporter.plan.planning import Plan
from exporter.plan.schedule import count_programs

_COLUMNS = ("variable", "primitive", "rule", "form", "T", "I", "J", "GFLOP", "MiB", "share")
_TEXTS = 4  # the first columns


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A plan, how it would be carried out, and what of it verified; `str` of it is for people."""

    plan: Plan
    choice: Choice
    verification: str

    def __str__(self) -> str:
        """The rows of the plan and of the schedule, and a table of the sites."""
        rows = [*self.plan.rows(), *self._schedule(), ("verification", self.verification)]
        lines = [f"{title:<15} {text}" for title, text in rows]
        parts = self.choice.schedule and self.choice.schedule.parts
        if isinstance(parts, LayerwiseParts):
            lines += ["", *self._sites(parts.costs())]
        return "\n".join(lines)

    def _schedule(self) -> list[tuple[str, str]]:
        choice, names = self.choice, self.plan.export.signatures
        schedule, budget = choice.schedule, self.plan.export.memory_budget
        if schedule is None:
            return [("programs", "one for each number of examples that is asked for, compiled then")]
        sizes = ", ".join(map(str, schedule.blocks.sizes))
        rows = []
        if isinstance(parts := schedule.parts, LayerwiseParts) and parts.replaced:
            rows.append(("last layer", f"{parts.outputs:,} outputs instead, which have the same kernel"))
        rows += [
            ("programs", f"{count_programs(names, schedule)}, for blocks of {sizes} examples"),
            ("memory", f"{_mib(choice.bytes)} of {_mib(budget)} for a request at most, besides inputs and result"),
        ]
        if not choice.features_bytes:
            return [*rows, ("features", "none: each pair of blocks is computed by itself")]
        rows += [
            ("features", f"{_mib(choice.features_bytes)} for an example, computed once for each, as long as"),
            ("", f"one side of a request has at most {choice.resident:,} examples"),
        ]
        if schedule.parts.passes > 1:
            rows.append(("", f"in {schedule.parts.passes} passes, of some of the outputs each"))
        if schedule.larger:
            most = schedule.larger.blocks.resident_examples
            rows.append(("", f"or in {schedule.larger.parts.passes} passes at most {most:,}"))
        return rows

    def _sites(self, costs: Sequence[SiteCost]) -> list[str]:
        n = self.choice.schedule.blocks.sizes[-1] if self.choice.schedule else 1
        total = sum(cost.flops(n, n) for cost in costs)
        table: list[tuple[str, ...]] = [_COLUMNS]
        for cost in costs:
            flops = cost.flops(n, n)
            sizes = map(str, cost.sizes or ("", "", ""))
            numbers = (f"{flops / 1e9:.3f}", f"{cost.bytes / 2**20:.3f}", f"{flops / total:.1%}" if total else "")
            table.append((", ".join(cost.variables), cost.primitive, cost.rule, cost.form, *sizes, *numbers))
        size = sum(cost.bytes for cost in costs)
        table.append(("total", *[""] * 6, f"{total / 1e9:.3f}", f"{size / 2**20:.3f}", ""))
        heading = (
            "Sites, where a parameter meets data, with T positions, I inputs and J outputs; GFLOP of a kernel of "
            f"{n}×{n} examples, MiB of an example's features:"
        )
        return [heading, *_aligned(table)]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, texts to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k < _TEXTS else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _mib(size: int) -> str:
    return f"{size / 2**20:.4g} MiB"
