"""What an export would do, as text: the plan, the programs and their memory, the kernel's sites and their costs."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from exporter.ntk.layerwise.costs import SiteCost
from exporter.ntk.layerwise.engine import LayerwiseParts
from exporter.plan.choosing import Choice
from exporter.plan.planning import Plan
from exporter.plan.schedule import count_programs
from serving.shared.terminal import console_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

WIDTH = 100  # at most, in characters
_TITLES = 15  # of the rows
_COLUMNS = ("variable", "primitive", "rule", "form", "T", "I", "J", "GFLOP", "MiB", "share")
_TEXTS = 4  # the first columns
_FORM = _COLUMNS.index("form")
_SHORT = {"conv_general_dilated": "conv"}  # what the rule says too


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A plan, how it would be carried out, and what of it verified; `str` of it is for people."""

    plan: Plan
    choice: Choice
    verification: str

    def __str__(self) -> str:
        """The rows of the plan and of the schedule, and a table of the sites, as plain text of `WIDTH` characters."""
        text = io.StringIO()
        console_of(text, WIDTH).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The same for rich, in colour where it is shown in colour."""
        from rich.constrain import Constrain
        from rich.table import Table
        from rich.text import Text

        width = min(WIDTH, options.max_width)
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.width = width
        rows.add_column(width=_TITLES, no_wrap=True, style="cyan")
        rows.add_column(ratio=1, overflow="fold")
        for title, told in [*self.plan.rows(), *self._schedule(), ("verification", self.verification)]:
            text = Text(told)
            text.highlight_regex("WARNING:.*", "bold yellow")
            rows.add_row(title, text)
        yield rows
        parts = self.choice.schedule and self.choice.schedule.parts
        if isinstance(parts, LayerwiseParts):
            heading, table = self._sites(parts.costs())
            yield Constrain(Text(f"\n{heading}"), width)
            yield _aligned(table, width)

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

    def _sites(self, costs: Sequence[SiteCost]) -> tuple[str, list[tuple[str, ...]]]:
        """Heading and rows of the table, its columns' titles first and the sums last."""
        n = self.choice.schedule.blocks.sizes[-1] if self.choice.schedule else 1
        total = sum(cost.flops(n, n) for cost in costs)
        table: list[tuple[str, ...]] = [_COLUMNS]
        for cost in costs:
            flops = cost.flops(n, n)
            sizes = map(str, cost.sizes or ("", "", ""))
            numbers = (f"{flops / 1e9:.3f}", f"{cost.bytes / 2**20:.3f}", f"{flops / total:.1%}" if total else "")
            primitive = _SHORT.get(cost.primitive, cost.primitive)
            table.append((", ".join(cost.variables), primitive, cost.rule, cost.form, *sizes, *numbers))
        size = sum(cost.bytes for cost in costs)
        table.append(("total", *[""] * 6, f"{total / 1e9:.3f}", f"{size / 2**20:.3f}", ""))
        heading = (
            "Sites, where a parameter meets data, with T positions, I inputs and J outputs; GFLOP of a kernel of "
            f"{n}×{n} examples, MiB of an example's features:"
        )
        return heading, table


def _aligned(rows: Sequence[Sequence[str]], width: int) -> Table:
    """Rows of cells as a table, texts to the left and numbers to the right; what is too wide is broken."""
    from rich.table import Table

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    most = width - gap * (len(widths) - 1)
    if sum(widths) > most:
        natural = widths[_FORM]
        widths[_FORM] = max(len(part) for row in rows for part in re.split("(?<=,) |(?<=row of) ", row[_FORM]))
        widths[0] = min(widths[0], max(most - sum(widths[1:]), 1))
        widths[_FORM] = min(natural, widths[_FORM] + max(most - sum(widths), 0))
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for k, title in enumerate(rows[0]):
        if k < _TEXTS:
            table.add_column(title, width=widths[k], overflow="fold", style="cyan" if k == 0 else "")
        else:
            table.add_column(title, width=widths[k], justify="right", no_wrap=True)
    for k, (name, *others) in enumerate(rows[1:], 2):
        table.add_row(_broken(name, widths[0]), *others, style="bold" if k == len(rows) else "")
    return table


def _broken(path: str, width: int) -> str:
    """Variables' paths in lines of at most so many characters where that can be, broken after "/", "_" and spaces."""
    lines = [""]
    for part in re.findall(r"[^/_ ]*[/_ ]?", path):
        if part and lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:.4g} MiB"
