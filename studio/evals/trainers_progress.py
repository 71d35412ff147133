"""Where a long evaluation is: a live bar on a terminal, a line per item elsewhere, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from studio.training.progress import clock


class Board:
    """Counts work in units (one unit: the pictures and the training of one item) and tells how long the rest will take.

    What was done before, and is not done again, must not be counted: the estimate is the mean of this session.
    """

    def __init__(self, total_units: float, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._now = now
        self._started = now()
        self._total = total_units
        self._done = 0.0
        self._item, self._item_units = "", 0.0
        self._bar: Any = None
        self._task: Any = None

    @contextmanager
    def shown(self) -> Iterator[Board]:
        """Inside the block a terminal has a live bar."""
        if self._stream.isatty():
            self._open()
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def begin(self, item: str, units: float) -> None:
        """Work on an item begins."""
        self._item, self._item_units = item, units
        if self._bar is None:
            self.say(f"{item}  {self._facts(0.0)}")
        self.at(0.0)

    def at(self, share: float) -> None:
        """So much of the item is done, 0 to 1."""
        if self._bar is not None:
            done = self._done + share * self._item_units
            self._bar.update(self._task, completed=done, item=self._item, facts=self._facts(share))

    def end(self) -> None:
        """The item is done."""
        self._done += self._item_units
        self._item_units = 0.0
        self.at(1.0)

    def say(self, message: str) -> None:
        """One line."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=self._stream, flush=True)

    def seconds_left(self, share: float = 0.0) -> float | None:
        """The estimate, from what this session has done so far; None while that is next to nothing."""
        done = self._done + share * self._item_units
        if done < 0.02 * self._total and done < 0.5:
            return None
        return (self._now() - self._started) / done * max(0.0, self._total - done)

    def _facts(self, share: float) -> str:
        left = self.seconds_left(share)
        done = self._done + share * self._item_units
        percent = 100 * done / self._total if self._total else 100.0
        return f"{percent:.0f} %" + ("" if left is None else f", {clock(left)} left")

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("[bold]{task.fields[item]}"), BarColumn(), TextColumn("{task.fields[facts]}"))
        self._bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, item="", facts="")
