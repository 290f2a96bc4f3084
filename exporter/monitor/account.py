"""Whether there is time to measure: of the time that training takes, measuring may take a fixed part."""

from __future__ import annotations


class Account:
    """The time of training and of measuring, in seconds.

    A measurement is made when all of them, with it, take at most `budget` times what training took until then. So
    measuring never takes more than that part of a run, whatever an epoch takes; what it does not take is saved up.

    Attributes:
      trained: time of all epochs.
      spent: time of all measurements.
      epoch: time of the last epoch.
      cost: time that a measurement takes, which the last one did.
    """

    def __init__(self, budget: float | None) -> None:
        """Takes the part of the time of training that measuring may take; None for any."""
        self._budget = budget
        self.trained = self.spent = self.epoch = self.cost = 0.0

    def train(self, seconds: float) -> None:
        """An epoch took so long."""
        self.epoch = seconds
        self.trained += seconds

    def spend(self, seconds: float) -> None:
        """A measurement took so long."""
        self.cost = seconds
        self.spent += seconds

    @property
    def affords(self) -> bool:
        """Whether there is time for a measurement now."""
        return self._budget is None or self.spent + self.cost <= self._budget * self.trained

    def affordable_cost(self, epochs: int) -> float:
        """What a measurement may cost to be made once within so many more epochs like the last one."""
        if self._budget is None:
            return float("inf")
        return self._budget * (self.trained + epochs * self.epoch) - self.spent

    @property
    def epochs_between(self) -> float:
        """After how many epochs like the last one there is time for another measurement."""
        return 1.0 if self._budget is None else self.cost / max(self._budget * self.epoch, 1e-9)
