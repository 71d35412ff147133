"""How a run tells a person where it is: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

PLAIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step as told to people: smoothed loss, pictures per second, seconds left."""

    step: int
    total_steps: int
    loss: float
    images_per_second: float
    seconds_left: float


class Progress(Protocol):
    """Where a run reports to. `step` may be called for every step and must be quick."""

    def begin(self, total_steps: int, done_steps: int) -> None:
        """Training starts, or goes on after `done_steps`."""
        ...

    def step(self, report: StepReport) -> None:
        """A step is done."""
        ...

    def say(self, message: str) -> None:
        """A sentence about something that happened."""
        ...

    def end(self) -> None:
        """Training is over or was stopped."""
        ...


class Silence:
    """Says nothing."""

    def begin(self, total_steps: int, done_steps: int) -> None:
        """Nothing."""

    def step(self, report: StepReport) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class PlainProgress:
    """A line at the start, every ten seconds, and for each event: for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every_seconds: float = PLAIN_SECONDS) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._every = every_seconds
        self._last = 0.0

    def begin(self, total_steps: int, done_steps: int) -> None:
        """Say how many steps there are."""
        self.say(f"training: {total_steps} steps" + (f", going on after step {done_steps}" if done_steps else ""))

    def step(self, report: StepReport) -> None:
        """A line now and then, and for the last step."""
        now = time.monotonic()
        if now - self._last >= self._every or report.step == report.total_steps:
            self._last = now
            self.say(
                f"step {report.step}/{report.total_steps}  loss {report.loss:.4f}  "
                f"{report.images_per_second:.1f} images/s  {clock(report.seconds_left)} left"
            )

    def say(self, message: str) -> None:
        """One line."""
        print(message, file=self._stream, flush=True)

    def end(self) -> None:
        """Nothing to close."""


class RichProgress:
    """A live bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar: Any = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task: Any = None

    def begin(self, total_steps: int, done_steps: int) -> None:
        """Draw the bar."""
        self._bar.start()
        self._task = self._bar.add_task("training", total=total_steps, completed=done_steps, facts="")

    def step(self, report: StepReport) -> None:
        """Move the bar."""
        facts = f"loss {report.loss:.4f}  {report.images_per_second:.1f} images/s  {clock(report.seconds_left)} left"
        self._bar.update(self._task, completed=report.step, facts=facts)

    def say(self, message: str) -> None:
        """A line above the bar."""
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def progress_for_terminal() -> Progress:
    """The live bar when standard error is a terminal, plain lines otherwise."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


def clock(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Speedometer:
    """Smoothed loss, pictures per second and time left, without reading the loss more often than it is given."""

    def __init__(self, total_steps: int, images_per_step: int, now: Callable[[], float] = time.monotonic) -> None:
        self._total = total_steps
        self._images = images_per_step
        self._now = now
        self._started = now()
        self._paused = 0.0
        self._steps = 0
        self._loss = 0.0
        self._weight = 0.0

    def pause(self, seconds: float) -> None:
        """Leave out `seconds` that went into something else than steps."""
        self._paused += seconds

    def report(self, step: int, loss: float, *, is_step: bool = True) -> StepReport:
        """After a forward pass of `step`; `is_step` for the one that completes it."""
        self._steps += is_step
        self._loss = 0.95 * self._loss + 0.05 * loss
        self._weight = 0.95 * self._weight + 0.05
        elapsed = max(1e-6, self._now() - self._started - self._paused)
        return StepReport(
            step=step,
            total_steps=self._total,
            loss=self._loss / self._weight,
            images_per_second=self._steps * self._images / elapsed,
            seconds_left=(self._total - step) * elapsed / max(1, self._steps),
        )
