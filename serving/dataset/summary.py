"""What a job did, in the lines that it ends with."""

from __future__ import annotations

import dataclasses

from serving.dataset.jobs import Done


@dataclasses.dataclass
class Summary:
    """Sums over a job's tasks.

    Attributes:
      tasks: done by this job.
      pairs: of examples, in these; 0 for what has no pairs.
      examples: rows of the result, in these.
      bytes: written.
      busy: seconds that workers were at work.
      seconds: from the first task to the last result.
      workers: processes that did tasks.
    """

    tasks: int = 0
    pairs: int = 0
    examples: float = 0
    bytes: int = 0
    busy: float = 0.0
    seconds: float = 0.0
    workers: set[str] = dataclasses.field(default_factory=set)

    def add(self, done: Done, *, examples: float, pairs: int = 0) -> None:
        """One more task."""
        self.tasks += 1
        self.pairs += pairs
        self.examples += examples
        self.bytes += done.bytes
        self.busy += done.seconds
        self.workers.add(done.worker)

    def __str__(self) -> str:
        """Rates and bytes."""
        if not self.tasks:
            return "nothing was missing"
        rates = [f"{self.examples / self.seconds:,.0f} examples/s"]
        if self.pairs:
            rates.append(f"{self.pairs / self.seconds:,.0f} pairs/s")
        many = (
            f"{self.tasks:,} tile{'s' * (self.tasks > 1)} by {len(self.workers)} worker{'s' * (len(self.workers) > 1)}"
        )
        return f"{many} in {self.seconds:.1f} s: {', '.join(rates)}; {self.bytes / 2**20:,.1f} MiB written"
