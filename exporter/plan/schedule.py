"""Which programs a kernel has, in blocks of which sizes, and which requests reach all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exporter.ntk.kernel import KernelParts

LARGEST_BLOCK = 64  # examples a side
PAIRS = ("ntk", "ntk_with_params", "ntk_symmetric")  # signatures of kernels of pairs


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of programs.

    Attributes:
      sizes: examples of a side of a program, smallest first.
      resident: how many tiles' features may be in memory besides those at work.
      joined: how many blocks of the largest size make a tile, whose features are contracted at once.
    """

    sizes: tuple[int, ...]
    resident: int
    joined: int = 1

    @property
    def contracted(self) -> tuple[int, ...]:
        """Examples of a side of a contraction, smallest first."""
        return tuple(sorted({*self.sizes, self.tile}))

    @property
    def tile(self) -> int:
        """Examples of a side of the largest contraction."""
        return self.sizes[-1] * self.joined

    @property
    def resident_examples(self) -> int:
        """How many examples one side of a request may have for features to be computed once."""
        return self.resident * self.tile


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A kernel and the sizes of its programs.

    Attributes:
      parts: the kernel.
      blocks: sizes of the programs.
      larger: the same for requests too large for these, always by tiles; None if that would not be better.
      most: examples of the smaller side of requests that are not too large, if there is a larger one.
      projected: sizes of the programs of `ntk_features`, some of those of `blocks`.
      projected_at_once: whether these are traced once for all numbers of examples.
      frozen: sizes of the programs of the model's frozen part, some of those of `blocks`.
    """

    parts: KernelParts
    blocks: Blocks
    larger: Schedule | None = None
    most: int = 0
    projected: tuple[int, ...] = ()
    projected_at_once: bool = False
    frozen: tuple[int, ...] = ()

    def sizes(self, signature: str) -> tuple[int, ...]:
        """Sizes of a signature's blocks, smallest first."""
        return self.projected if signature == "ntk_features" else self.blocks.sizes


def warmup_examples(signatures: Sequence[str], schedule: Schedule | None) -> dict[str, list[int]]:
    """For each signature the numbers of examples of requests that reach every program, by the least work.

    Of x2 one example will do. Kernels of pairs share their programs, so the first such signature is asked for each of
    them, and the others once, for their graphs. A model whose batches are never split gets one request of one example.
    """
    if schedule is None:
        return {name: [1] for name in signatures}
    blocks = schedule.blocks
    tile = [blocks.sizes[-1] + 1] if blocks.joined > 1 else []
    of_pairs = [*blocks.sizes, *tile, *([0] if schedule.larger else [])]
    pairs = [name for name in PAIRS if name in signatures]
    once = {name: [1] for name in pairs[1:]}
    return {name: once.get(name) or (of_pairs if name in pairs else list(schedule.sizes(name))) for name in signatures}


def examples_of_requests(signatures: Sequence[str], schedule: Schedule | None) -> dict[str, list[int]]:
    """For each signature numbers of examples that take every way through its graph.

    One for each size of block, one that needs more than a block, one that needs more than a tile, and for requests too
    large for these one without examples (see `serve_graph.Kernel`). `ntk_with_params` has the programs of `ntk`, so
    where there is `ntk` one request for its graph will do. A model whose batches are never split gets one request of
    one example.
    """
    examples = {}
    for name in signatures:
        if schedule is None or (name == "ntk_with_params" and "ntk" in signatures):
            examples[name] = [1]
            continue
        blocks = schedule.blocks
        sizes = schedule.sizes(name)
        examples[name] = [*sizes, sizes[-1] + 1]
        if _programs(name)[-1] == "contract":
            more_than_a_tile = [blocks.tile + 1] if blocks.joined > 1 else []
            examples[name] += [*more_than_a_tile, *([0] if schedule.larger else [])]
    return examples


def frozen_sizes(blocks: Blocks, most: int) -> tuple[int, ...]:
    """Sizes of blocks of a model's frozen part, at most so many examples: some of those of the kernel."""
    return tuple(size for size in blocks.sizes if size <= most) or (most,)


def count_programs(signatures: Sequence[str], schedule: Schedule | None) -> int | None:
    """How many programs XLA compiles for all requests that there can be; None if one for each number of examples."""
    if schedule is None:
        return None
    kinds = {kind for name in signatures for kind in _programs(name)}
    blocks, more = schedule.blocks, schedule.larger
    larger = len(more.blocks.sizes) + 1 if more and "contract" in kinds else 0
    of_kinds = {"contract": blocks.contracted, "projection": schedule.projected}
    return sum(len(of_kinds.get(kind, blocks.sizes)) for kind in kinds) + larger + len(schedule.frozen)


def count_traces(signatures: Sequence[str], schedule: Schedule) -> int:
    """How often JAX traces these programs: contractions for each of their sizes, most others once for all."""
    kinds = {kind for name in signatures for kind in _programs(name)}
    of_kinds = {
        "contract": len(schedule.blocks.contracted) + (2 if schedule.larger else 0),
        "projection": 1 if schedule.projected_at_once else len(schedule.projected),
    }
    return sum(of_kinds.get(kind, 1) for kind in kinds)


def _programs(signature: str) -> tuple[str, ...]:
    """The kinds of programs that a signature runs."""
    alone = {"forward": "forward", "ntk_features": "projection"}
    if signature in alone:
        return (alone[signature],)
    return ("features", "diagonal" if signature == "ntk_diagonal" else "contract")
