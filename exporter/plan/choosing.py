"""Decides how a planned kernel is computed: by which implementation, in blocks of what sizes, within the memory budget.

The time of a request is mostly that of features, one per example, as long as they are computed once. So a block is
as large as leaves room for the features of more blocks beside it; small requests get small blocks.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from typing import Any

import jax

from exporter.errors import ExportError
from exporter.ntk.count_sketch import Sketch
from exporter.ntk.kernel import Undivided
from exporter.ntk.layerwise.engine import LayerwiseParts
from exporter.ntk.layerwise.lowering import of_platforms
from exporter.ntk.layerwise.projection import Projection
from exporter.ntk.measure import bytes_of_program
from exporter.plan.planning import Plan
from exporter.plan.schedule import LARGEST_BLOCK, Blocks, Schedule, frozen_sizes
from exporter.progress import Note, silent

LARGEST_TILE = 256  # contracted at once: products of larger matrices are not faster
FEWER_EXAMPLES = (16, 4)  # of a side, for which forms of features are chosen where more do not fit
SMALLER_BLOCK = 16  # of undivided kernels, and of deep models
DEEP_PROJECTED = 4  # examples of a block of `ntk_features` of deep models
MOST_FROZEN = 8  # examples of a block of a frozen part: more do not make large models faster
MORE_PASSES = (2, 3, 5)  # times as many, each with a forward pass more, for requests whose features do not fit
PART = 3  # passes backwards: of a ResNet-50 1.6 to make features, and 0.2 to 0.4 for each pair's contraction
WORTH = 1.2  # times as fast should these requests be, for two programs more
LARGER_BLOCKS = 2  # times as large are blocks then
SHARE = 0.8  # of the memory budget is planned with: TF and the allocator need some too


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the kernel is computed.

    Attributes:
      implementation: its name.
      schedule: its parts and the sizes of their programs; None if batches are never split.
      features_bytes: of one example's features; 0 if the kernel is not divided into features and their contraction.
      work_bytes: that programs of the largest block take besides resident features, at most.
      projected: what `ntk_features` returns; None without that signature.
    """

    implementation: str
    schedule: Schedule | None = None
    features_bytes: int = 0
    work_bytes: int = 0
    projected: Projection | None = None

    @property
    def bytes(self) -> int:
        """Of intermediate values that a request takes, at most."""
        return self.work_bytes + self.resident * self.features_bytes

    @property
    def resident(self) -> int:
        """How many examples one side of a request may have for features to be computed once."""
        return 0 if self.schedule is None else self.schedule.blocks.resident_examples

    @property
    def flops(self) -> dict[str, float] | None:
        """Floating point operations by the engine's count: of each example's features, and of each pair."""
        parts = self.schedule and self.schedule.parts
        if not isinstance(parts, LayerwiseParts):
            return None
        costs = parts.costs()
        return {"example": sum(c.example_flops for c in costs), "pair": sum(c.pair_flops for c in costs)}

    @property
    def summary(self) -> str:
        """For people, in a line."""
        if self.schedule is None:
            return f"{self.implementation}; batches of any size, each compiled when first asked for"
        sizes = ", ".join(map(str, self.schedule.blocks.sizes))
        features = f", {self.features_bytes / 2**20:.3g} MiB each" if self.features_bytes else ""
        return f"{self.implementation}; blocks of {sizes} examples{features}"


def choose(plan: Plan, note: Note = silent) -> Choice:
    """Decides how the kernel is computed; `note` is told how far it is.

    Raises:
      ExportError: not even one pair of examples fits the budget.
    """
    name = "layerwise" if plan.ntk.implementation == "auto" else plan.ntk.implementation
    if plan.coupled:
        return Choice(name)
    divided = _divided(plan, note) if name == "layerwise" else None
    choice = divided or _undivided(plan, name)
    if plan.model.frozen_part is not None:
        assert choice.schedule is not None
        fitting = int(SHARE * plan.export.memory_budget / 2 / plan.model.frozen_part.bytes_of_example)
        sizes = frozen_sizes(choice.schedule.blocks, max(1, min(MOST_FROZEN, fitting)))
        schedule = dataclasses.replace(choice.schedule, frozen=sizes)
        work = max(choice.work_bytes, sizes[-1] * plan.model.frozen_part.bytes_of_example)  # which is done before
        choice = dataclasses.replace(choice, schedule=schedule, work_bytes=work)
    return choice if plan.sketch is None else _with_projection(plan, choice, plan.sketch)


def _with_projection(plan: Plan, choice: Choice, sketch: Sketch) -> Choice:
    """The choice with `ntk_features`, in blocks of one example and of the largest number that fits half of the budget.

    Of the Jacobian there is never more than one site's, so mostly that is the largest block of features. One in between
    would be no faster for each example, and takes longest of all programs to compile. Deep models, of which it takes
    longest, have a single small one: for one example it takes about twice as long as a block of one, and for many
    hardly longer than large ones.
    """
    memory = int(SHARE * plan.export.memory_budget / 2)
    projected = Projection(
        plan.all_outputs.traced,
        sketch,
        trace_axes=plan.ntk.trace_axes,
        memory=memory,
        hows=of_platforms(plan.export.platforms),
    )
    needed = projected.bytes_at_work(1)
    if needed > plan.export.memory_budget:
        raise ExportError(
            "The features of one example do not fit the memory budget: expected at most "
            f"{plan.export.memory_budget / 2**20:.4g} MiB (export.memory_budget), received {needed / 2**20:.4g} MiB "
            "for one of its outputs at the largest variable. Raise the budget, set export.features.dimensions to "
            "fewer, or take ntk_features off export.signatures."
        )
    assert choice.schedule is not None
    sizes = choice.schedule.blocks.sizes
    fitting = max((n for n in sizes if projected.bytes_at_work(n) <= memory), default=1)
    sizes = (min(fitting, DEEP_PROJECTED),) if plan.all_outputs.deep else tuple(sorted({1, fitting}))
    at_once = projected.of_any_number(sizes[-1])
    schedule = dataclasses.replace(choice.schedule, projected=sizes, projected_at_once=at_once)
    return dataclasses.replace(choice, schedule=schedule, projected=projected)


def _divided(plan: Plan, note: Note) -> Choice | None:
    """Features of each example once; None if those of three examples do not fit the budget in any number of passes."""
    budget = SHARE * plan.export.memory_budget

    examples, parts = LARGEST_BLOCK, plan.parts_of_large_blocks
    for smaller in FEWER_EXAMPLES:  # in the forms best for so many, if they fit
        if 3 * examples * parts.features_bytes <= budget / 2:
            break
        examples, parts = smaller, plan.layerwise_parts(smaller)
    while 3 * parts.features_bytes > budget / 2 or parts.bytes_at_work > budget / 2:
        fewer = plan.layerwise_parts(examples, 2 * parts.passes)
        if fewer.passes == parts.passes:
            break
        parts = fewer
    per_example = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(parts.specs(1)))
    if 3 * per_example > budget or parts.bytes_at_work > budget:
        return None
    variables = parts.variable_specs
    largest = SMALLER_BLOCK if parts.deep else LARGEST_BLOCK
    measured = itertools.count(1)

    def bytes_of(*program: Any) -> int:
        size, done = bytes_of_program(*program), next(measured)
        note(f"memory of {done} of at most 3 programs", done, 3)
        return size

    def bytes_of_features(n: int) -> int:
        return bytes_of(parts.features, *variables, plan.examples(n))

    pairs = bytes_of(parts.contract, *variables, parts.specs(4), parts.specs(4))
    more_each = one = bytes_of_features(1)
    if largest * one > budget / 8 and one + 5 * per_example <= budget / 2:
        # What does not grow with their number is told apart, unless it does not matter, or two examples make no block.
        more_each = max(0, bytes_of_features(4) - one) // 3

    def work(block: int) -> int:
        """Bytes of the features of a block while they are made, or of one block's and its contraction."""
        make = one + (block - 1) * more_each
        return int(max(make, block * per_example + pairs * (block / 4) ** 2))

    block = largest
    while block > 1 and work(block) + 2 * block * per_example > budget / 2:
        block //= 2
    sizes = tuple(sorted({1, block})) if parts.deep else _sizes(block)
    blocks, work_bytes = _tiles(sizes, per_example, work(block), pairs, budget)
    if blocks.resident < 1:
        return None

    larger_block = block if block == 1 else LARGER_BLOCKS * block  # with less work for each example

    def in_passes(passes: int) -> tuple[LayerwiseParts, Blocks]:
        more = plan.layerwise_parts(max(examples, larger_block), passes)
        return more, _tiles((larger_block,), more.features_bytes, work(block), pairs, budget)[0]

    large = [times * blocks.resident_examples for times in (2, 4, 8)]

    def mean(parts: LayerwiseParts, blocks: Blocks) -> float:
        return math.prod(_passes_for(parts, blocks, n) for n in large) ** (1 / len(large))

    more = min((in_passes(times * parts.passes) for times in MORE_PASSES), key=lambda more: mean(*more))
    schedule = Schedule(parts, blocks)
    if mean(parts, blocks) > WORTH * mean(*more):
        # Their quotient only grows, to above one at the largest of these numbers; of small models these are millions.
        numbers = range(blocks.resident_examples + 1, large[-1] + 1)
        first = bisect.bisect(numbers, False, key=lambda n: _passes_for(parts, blocks, n) > _passes_for(*more, n))
        most = blocks.resident_examples + first
        schedule = Schedule(parts, blocks, Schedule(*more), most)
    return Choice("layerwise", schedule, per_example, work_bytes)


def _passes_for(parts: LayerwiseParts, blocks: Blocks, n: int) -> float:
    """Passes backwards that take as long, for each example, as a symmetric request of n examples.

    Features take one for each output; and for each part of the outputs as long as `PART` of them, forwards, to make
    patches of data, and to contract these. If not all fit, they are made for each part of the examples that does, of
    these and of those after them.
    """
    most = max(blocks.resident_examples, 1)
    return (PART * parts.passes + parts.outputs) * max(1.0, 0.5 + n / (2 * most))


def _tiles(
    sizes: tuple[int, ...], per_example: int, block_work: int, pairs_bytes: int, budget: float
) -> tuple[Blocks, int]:
    """Blocks in the largest tiles that leave 7 of 8 examples resident, and the bytes of work besides these.

    Args:
      sizes: of blocks.
      per_example: bytes of an example's features.
      block_work: bytes of work with a block of the largest size, its own features included.
      pairs_bytes: those of a contraction of four by four examples, besides the features.
      budget: for everything.
    """

    def of(joined: int) -> tuple[Blocks, int]:
        tile = joined * sizes[-1]
        work = block_work
        if joined > 1:
            made = (joined - 1) * sizes[-1] * per_example + block_work
            work = int(max(made, 2 * tile * per_example, tile * per_example + pairs_bytes * (tile / 4) ** 2))
        return Blocks(sizes, int((budget - work) // (tile * per_example)), joined), work

    single = of(1)
    for joined in (4, 2):
        blocks, work = of(joined)
        enough = 8 * blocks.resident_examples >= 7 * single[0].resident_examples
        if blocks.tile <= LARGEST_TILE and work <= budget / 2 and blocks.resident >= 1 and enough:
            return blocks, work
    return single


def _undivided(plan: Plan, name: str) -> Choice:
    """The kernel of every pair of blocks by itself."""
    budget = plan.export.memory_budget
    kernel = plan.kernel(name)
    variables = (plan.model.trainable, plan.model.frozen)
    for block in (2, 1):
        x = plan.examples(block)
        of_block = bytes_of_program(kernel, *variables, x, x)
        if of_block <= budget:
            break
    else:
        raise ExportError(
            f"One pair of examples does not fit the memory budget: expected at most {budget / 2**20:.4g} MiB "
            f"(export.memory_budget), received {of_block / 2**20:.4g} MiB for {name}. Raise the budget."
        )
    largest = block if block == 1 else SMALLER_BLOCK
    while of_block * (largest / block) ** 2 > budget:  # no part of it grows faster
        largest //= 2
    work = int(of_block * (largest / block) ** 2)
    schedule = Schedule(Undivided(kernel, variables, plan.examples(1)), Blocks(_sizes(largest), 1))
    return Choice(name, schedule, 0, work)


def _sizes(largest: int) -> tuple[int, ...]:
    """Blocks of one example, of the largest number, and if that is much larger of one in between."""
    middle = [2 ** (largest.bit_length() // 2)] if largest >= 16 else []
    return tuple(sorted({1, *middle, largest}))
