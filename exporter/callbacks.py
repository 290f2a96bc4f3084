"""A callback of Keras 3 and Keras 2 that follows a model's neural tangent kernel while `fit` trains it.

    model.fit(x, y, epochs=20, callbacks=[NtkCallback(x, y, log_dir="logs")])

`docs/monitor_training.md` says what its numbers mean.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import MutableMapping
from typing import Any

import keras
import numpy as np
import tf_keras

from exporter.config import NtkConfig
from exporter.errors import ExportError
from exporter.functionalize.model_kinds import source_of
from exporter.monitor.account import Account
from exporter.monitor.events import Events
from exporter.monitor.kernel import KernelNow
from exporter.monitor.measurement import Measurement, measure
from exporter.monitor.sample import draw
from serving.shared.spectrum import RIDGE

__all__ = ["Measurement", "NtkCallback"]

Logs = MutableMapping[str, Any]

FEWEST_EXAMPLES = 16  # that a sample is reduced to
_MARGIN = 0.8  # of the time there is: with fewer examples each takes a little longer

_log = logging.getLogger("exporter")


class NtkCallback(keras.callbacks.Callback, tf_keras.callbacks.Callback):
    """Follows the kernel of a model, Keras 3 or tf_keras, on a fixed sample while `fit` trains it.

    After each epoch that is measured, `history.history` has, and TensorBoard shows, of the kernel K (n, n) in inference
    mode: `ntk_top_eigenvalue`, the largest; `ntk_mean_diagonal`, tr K / n; `ntk_effective_dimension`,
    tr K (K + λ)⁻¹ with λ = ridge · tr K; `ntk_change`, |K - K₀| / |K₀| since the start; and with targets
    `ntk_alignment`, the cosine between K and Y Yᵀ, both centred (`serving.shared.spectrum`). For an epoch that is not
    measured, and once the kernel is not finite, they are NaN. Callbacks that stand behind it in `callbacks` see them
    too. TensorBoard also shows a histogram of the eigenvalues and a picture of K, and the start, as step 0; a step is
    a number of trained epochs.

    The model is traced when `fit` begins, which is not counted in `budget`; later its weights are assigned. In another
    `fit` the callback goes on, unless it is of another model or other variables are trained: then it begins anew.

    Attributes:
      measurements: all that were made, the first of the start; they have all eigenvalues.
      kernel: the last one that was measured, (n, n).
      sample: the examples that are followed, ordered by class.
      setup_seconds: that tracing and compiling took.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        log_dir: str | os.PathLike[str] | None = None,
        every: int = 1,
        examples: int = 128,
        seed: int = 0,
        budget: float | None = 0.05,
        ridge: float = RIDGE,
        ntk: NtkConfig | None = None,
        memory: int = 1 << 30,
    ) -> None:
        """Draws the sample, which is all that is kept of x and y.

        Args:
          x: what `fit` takes, as arrays: examples on axis 0; of several inputs a list, tuple or dict.
          y: targets (n, ...): integers, texts and one-hot rows are classes, floats are numbers. None to do without.
          log_dir: directory for TensorBoard; it gets a run of its own, `ntk`. None for no such files.
          every: epochs from one measurement to the next, at least.
          examples: of the sample, with all classes in proportion.
          seed: of the sample.
          budget: part of the time of training that measuring may take at most. What does not fit is skipped and, if
            not even one measurement fits the run, measured on fewer examples; both is said by a warning. None for any.
          ridge: of the effective dimension, as a part of the kernel's trace.
          ntk: which kernel; by default that of all trainable variables, averaged over the last axis of the output.
          memory: bytes that intermediate values may take.

        Raises:
          ExportError: x and y are no arrays of as many examples.
          ValueError: another argument is out of its range.
        """
        super().__init__()  # Keras 3's: that of tf_keras would assign to `model`, which is a property
        for name, value, fits in (
            ("every", every, every >= 1),
            ("examples", examples, examples >= 2),
            ("budget", budget, budget is None or budget > 0),
            ("ridge", ridge, ridge > 0),
        ):
            if not fits:
                least = {"every": "at least 1", "examples": "at least 2"}.get(name, "above 0")
                raise ValueError(f"{name}: expected a number {least}, received {value}.")
        self.sample = draw(x, y, examples, seed)
        self.measurements: list[Measurement] = []
        self.kernel: np.ndarray | None = None
        self.setup_seconds = 0.0
        self._every, self._ridge, self._ntk, self._memory = every, ridge, ntk or NtkConfig(), memory
        self._drawn, self._budget = self.sample, budget
        self._events = None if log_dir is None else Events(os.path.join(log_dir, "ntk"))
        self._followed: tuple[Any, list[tuple[int, bool]]] | None = None
        self._epoch_began = 0.0

    # ------------------------------------------------------------------------------------------------- Keras calls

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Traces the model, if this is its first training, and measures the start.

        Raises:
          ExportError: the model does not take the sample, or has no such kernel; the message says what to do.
        """
        if not self.model.built:
            self._build()
        source = source_of(self.model)
        variables = [(id(variable), trainable) for _, variable, trainable in source.variables]
        if self._followed is None or self._followed[0] is not self.model or self._followed[1] != variables:
            self._followed = None  # if it cannot be
            self._begin()
            self._followed = (self.model, variables)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Begins to count its time."""
        if self._at_start and not self._unmeasured:
            self.measurements[0] = dataclasses.replace(self.measurements[0], epochs=epoch)
        self._epoch_began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Measures, if it is time for it and there is time for it; writes to `logs`."""
        self._account.train(time.perf_counter() - self._epoch_began)
        self._unmeasured += 1
        scalars = dict.fromkeys(self.measurements[0].scalars, float("nan"))
        if self._unmeasured >= self._every:
            if not self._account.affords:
                self._economize(max(0, (self.params or {}).get("epochs", 0) - (epoch + 1)))
            if self._account.affords:
                scalars = self._measure(epoch + 1).scalars
        if logs is not None:
            logs.update({f"ntk_{name}": value for name, value in scalars.items()})

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Writes the start, if nothing was measured after it."""
        self._write_start()

    # ------------------------------------------------------------------------------------------------ what they do

    @property
    def _at_start(self) -> bool:
        """Whether nothing was measured since."""
        return len(self.measurements) == 1

    def _build(self) -> None:
        """Calls a model that has no variables yet on an example, as the first step of training would."""
        first = {key: a[:1] for key, a in self.sample.inputs.items()}
        alone = len(first) == 1 and not self.sample.is_named
        try:
            self.model(first if self.sample.is_named else next(iter(first.values())) if alone else list(first.values()))
        except Exception as error:  # Keras', TensorFlow's, and the user's own
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"Expected {self.model.name!r}, which is not built, to take an example of x, received: {reason} Pass "
                "what its `fit` takes, or call the model on an example before."
            ) from error

    def _begin(self) -> None:
        began = time.perf_counter()
        self.sample = self._drawn
        self._account, self._unmeasured = Account(self._budget), 0
        self._said: set[str] = set()
        self._start_written = False
        self._kernel = KernelNow(self.model, self._ntk, self.sample, self._memory)
        self._kernel()  # compiles
        self._start = self._timed_start()
        self.measurements = [self._numbers(self._start, 0)]
        self.setup_seconds = time.perf_counter() - began

    def _timed_start(self) -> np.ndarray:
        """The kernel now, which tells what a measurement costs; not counted as one."""
        began = time.perf_counter()
        kernel = self._kernel()
        measure(kernel, kernel, self.sample.targets, ridge=self._ridge, epochs=0)
        self._account.cost = time.perf_counter() - began
        return kernel

    def _measure(self, epochs: int) -> Measurement:
        self._write_start()
        began = time.perf_counter()
        kernel = self._kernel()
        measurement = self._numbers(kernel, epochs)
        self.measurements.append(measurement)
        if self._events is not None:
            self._events.write(measurement, kernel)
        self._account.spend(time.perf_counter() - began)
        self._unmeasured = 0
        return measurement

    def _numbers(self, kernel: np.ndarray, epochs: int) -> Measurement:
        self.kernel = kernel
        if not np.all(np.isfinite(kernel)):
            self._say_once(
                "finite",
                f"the kernel after {epochs} epochs is not finite, since the weights or the outputs diverged; its "
                "numbers are NaN. Train with a smaller learning rate.",
            )
        return measure(kernel, self._start, self.sample.targets, ridge=self._ridge, epochs=epochs)

    def _economize(self, remaining: int) -> None:
        """Says that a measurement has no time yet; if there will be none for it in this run, takes fewer examples."""
        account, part = self._account, f"more than {100 * (self._budget or 0):.3g} %"
        takes = f"measuring {len(self.sample)} examples takes {account.cost:.2g} s, {part}"
        more = "For more pass a larger `budget` (None for any), or fewer `examples`."
        affordable = account.affordable_cost(remaining)
        if account.cost <= affordable or not self._at_start:
            times = f"about every {account.epochs_between:.0f} epochs" if account.epochs_between >= 2 else "less often"
            self._say_once("skip", f"{takes} of an epoch's time ({account.epoch:.2g} s), so it is done {times}. {more}")
            return
        count = int(_MARGIN * len(self.sample) * affordable / account.cost)
        run = account.trained + remaining * account.epoch
        if count < FEWEST_EXAMPLES or (count < self._kernel.smallest and self.setup_seconds > run):
            self._say_once("never", f"{takes} of the time of all epochs, so it may be that none is measured. {more}")
            return
        before = len(self.sample)
        self.sample, chosen = self.sample.fewer(count)
        self._start = self._start[np.ix_(chosen, chosen)]
        began = time.perf_counter()
        self._kernel.take(self.sample)
        self._kernel()
        self._timed_start()
        self.setup_seconds += time.perf_counter() - began
        self.measurements = [self._numbers(self._start, self.measurements[0].epochs)]
        self._say_once(
            "fewer",
            f"{takes} of the time of all epochs, so {count} of {before} examples are measured from now on, whose "
            f"numbers cannot be compared with those of more. {more}",
        )
        self._said.add("skip")  # which goes without saying now

    def _write_start(self) -> None:
        if self._events is not None and not self._start_written:
            self._events.write(self.measurements[0], self._start)
        self._start_written = True

    def _say_once(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("NtkCallback: %s", text)
