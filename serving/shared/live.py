"""One line of a terminal, written over and over: what runs, a bar of what is done of it, and the time left.

It imports rich, and so is imported when there is a terminal to show it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from rich.console import RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from serving.shared.terminal import console_of, duration

_BAR, _SHORT_BAR = 20, 10  # characters
_WIDE = 100


class LiveLine:
    """The line; it is there from `start` to `close`, which removes it."""

    def __init__(
        self,
        title: str,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        start: float | None = None,
        above: bool = False,
    ) -> None:
        """Shows nothing yet.

        Args:
          title: what runs.
          stream: the terminal.
          clock: seconds.
          start: when it began; now by default.
          above: whether what is printed meanwhile is shown above the line: if standard output is the same terminal.
        """
        self._clock, self._start = clock, clock() if start is None else start
        self._part = self._at = self._start  # when what is counted began, and when it was last told of
        self._said = ("", 0, 0)
        console = console_of(stream)
        self._progress = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}", style="bold", markup=False, table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[detail]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            _Bar(_BAR if console.width >= _WIDE else _SHORT_BAR),
            _Times(self.times),
            console=console,
            transient=True,
            expand=True,
            redirect_stdout=above,
            redirect_stderr=False,  # libraries write warnings there, which are kept quiet by its file descriptor
            get_time=clock,
        )
        self._task = self._progress.add_task(title, total=None, detail="", done=0, of=0)

    def start(self) -> None:
        """Shows it."""
        self._progress.start()

    def update(self, detail: str, done: int = 0, total: int = 0) -> None:
        """Says how far it is: so many of a total, 0 if that is not known.

        Another total, or less that is done, begins something new, of which the time left is told.
        """
        _, before, of = self._said
        if total != of or done < before:
            self._part = self._at
        if (detail, done, total) != self._said:
            self._at, self._said = self._clock(), (detail, done, total)
        self._progress.update(self._task, detail=detail, done=done, of=total)

    def close(self) -> None:
        """Removes it."""
        self._progress.stop()

    def times(self) -> str:
        """The time since the beginning, and that which is left if it is known."""
        now, (_, done, total) = self._clock(), self._said
        text = duration(now - self._start)
        if not 0 < done <= total:
            return text
        left = (self._at - self._part) * (total - done) / done - (now - self._at)
        if done < total:  # as if the next were done now, for when it takes longer than the others
            left = max(left, (now - self._part) * (total - done - 1) / (done + 1))
        return f"{text}, about {duration(max(left, 0.0))} left"


class _Bar(ProgressColumn):
    """Nothing as long as there is nothing to count; a total of the task itself could not be taken back."""

    def __init__(self, width: int) -> None:
        self._width = width
        super().__init__()

    def render(self, task: Task) -> RenderableType:
        done, of = task.fields["done"], task.fields["of"]
        return ProgressBar(total=of, completed=min(done, of), width=self._width) if of else Text()


class _Times(ProgressColumn):
    def __init__(self, times: Callable[[], str]) -> None:
        self._text = times
        super().__init__(table_column=Column(no_wrap=True, justify="right"))

    def render(self, task: Task) -> Text:
        return Text(self._text(), style="dim")
