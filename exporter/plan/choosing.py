"""Decides how a planned kernel is computed: by which implementation, in blocks of what sizes, within the memory budget.

The time of a request is mostly that of features, one per example, as long as they are computed once. So a block is
as large as leaves room for the features of more blocks beside it; small requests get small blocks.
"""

from __future__ import annotations

import dataclasses

import jax

from exporter.errors import ExportError
from exporter.ntk.count_sketch import Sketch
from exporter.ntk.kernel import Undivided
from exporter.ntk.layerwise.engine import LayerwiseParts
from exporter.ntk.layerwise.projected import ProjectedFeatures
from exporter.ntk.measure import bytes_of_program
from exporter.plan.planning import Plan
from exporter.plan.schedule import LARGEST_BLOCK, Blocks, Schedule

LARGEST_TILE = 256  # contracted at once: products of larger matrices are not faster
SMALLER_BLOCK = 16  # where the largest does not fit
MORE_PASSES = 5  # with each a forward pass more, for requests whose features do not fit
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
    projected: ProjectedFeatures | None = None

    @property
    def bytes(self) -> int:
        """Of intermediate values that a request takes, at most."""
        return self.work_bytes + self.resident * self.features_bytes

    @property
    def resident(self) -> int:
        """How many examples one side of a request may have for features to be computed once."""
        return 0 if self.schedule is None else self.schedule.blocks.resident_examples

    @property
    def summary(self) -> str:
        """For people, in a line."""
        if self.schedule is None:
            return f"{self.implementation}; batches of any size, each compiled when first asked for"
        sizes = ", ".join(map(str, self.schedule.blocks.sizes))
        features = f", {self.features_bytes / 2**20:.3g} MiB each" if self.features_bytes else ""
        return f"{self.implementation}; blocks of {sizes} examples{features}"


def choose(plan: Plan) -> Choice:
    """Decides how the kernel is computed.

    Raises:
      ExportError: not even one pair of examples fits the budget.
    """
    name = "layerwise" if plan.ntk.implementation == "auto" else plan.ntk.implementation
    if plan.coupled:
        return Choice(name)
    divided = _divided(plan) if name == "layerwise" else None
    choice = divided or _undivided(plan, name)
    return choice if plan.sketch is None else _with_projection(plan, choice, plan.sketch)


def _with_projection(plan: Plan, choice: Choice, sketch: Sketch) -> Choice:
    """The choice with `ntk_features`, in those of its blocks whose derivatives fit half of the budget.

    Of the Jacobian there is never more than one site's, so mostly these are all.
    """
    memory = int(SHARE * plan.export.memory_budget / 2)
    lowered = plan.parts_of_large_blocks.lowered
    projected = ProjectedFeatures(lowered, sketch, trace_axes=plan.ntk.trace_axes, memory=memory)
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
    fitting = tuple(n for n in sizes if projected.bytes_at_work(n) <= memory)
    schedule = dataclasses.replace(choice.schedule, projected=fitting or sizes[:1])
    return dataclasses.replace(choice, schedule=schedule, projected=projected)


def _divided(plan: Plan) -> Choice | None:
    """Features of each example once; None if those of three examples do not fit the budget in any number of passes."""
    variables = (plan.model.trainable, plan.model.frozen)
    budget = SHARE * plan.export.memory_budget

    def features_bytes(parts: LayerwiseParts) -> int:
        """Of one example."""
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(parts.specs(1)))

    parts = plan.parts_of_large_blocks  # in the forms best for such blocks, if there can be some
    if 3 * LARGEST_BLOCK * features_bytes(parts) > budget / 2:
        parts = plan.layerwise_parts(SMALLER_BLOCK)
    while 3 * features_bytes(parts) > budget / 2 or parts.bytes_at_work > budget / 2:
        fewer = plan.layerwise_parts(SMALLER_BLOCK, 2 * parts.passes)
        if fewer.passes == parts.passes:
            break
        parts = fewer
    per_example = features_bytes(parts)
    if 3 * per_example > budget or parts.bytes_at_work > budget:
        return None
    one, four = (bytes_of_program(parts.features, *variables, plan.examples(n)) for n in (1, 4))
    pairs = bytes_of_program(parts.contract, *variables, parts.specs(4), parts.specs(4))

    def work(block: int) -> int:
        """Bytes of the features of a block while they are made, or of one block's and its contraction."""
        make = one + (block - 1) * max(0, four - one) / 3
        return int(max(make, block * per_example + pairs * (block / 4) ** 2))

    block = LARGEST_BLOCK
    while block > 1 and work(block) + 2 * block * per_example > budget / 2:
        block //= 2
    blocks, work_bytes = _tiles(_sizes(block), per_example, work(block), pairs, budget)
    if blocks.resident < 1:
        return None
    more = plan.layerwise_parts(LARGER_BLOCKS * block, MORE_PASSES * parts.passes)
    larger = None
    if per_example / features_bytes(more) >= MORE_PASSES / 2:  # or else not many more are resident
        # With less work for each example, as many outputs as there are passes fewer.
        sizes = (LARGER_BLOCKS * block,)
        larger = Schedule(more, _tiles(sizes, features_bytes(more), work(block), pairs, budget)[0])
    schedule = Schedule(parts, blocks, larger)
    return Choice("layerwise", schedule, per_example, work_bytes)


def _tiles(
    sizes: tuple[int, ...], per_example: int, block_work: int, pairs_bytes: int, budget: float
) -> tuple[Blocks, int]:
    """Blocks in the largest tiles that leave half of the examples resident, and the bytes of work besides these.

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
        enough = 2 * blocks.resident_examples >= single[0].resident_examples
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
    schedule = Schedule(Undivided(kernel, plan.examples(1)), Blocks(_sizes(largest), 1))
    return Choice(name, schedule, 0, work)


def _sizes(largest: int) -> tuple[int, ...]:
    """Blocks of one example, of the largest number, and if that is much larger of one in between."""
    middle = [2 ** (largest.bit_length() // 2)] if largest >= 16 else []
    return tuple(sorted({1, *middle, largest}))
