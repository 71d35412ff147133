"""How the process that works on a job says where it is: events in the job's folder, not too many."""

from __future__ import annotations

import time
from pathlib import Path

from studio.jobs.folder import JobFolder
from studio.training.progress import StepReport

SECONDS_BETWEEN_EVENTS = 0.5


class Reporter:
    """Events of one job: progress at most twice a second, all else at once."""

    def __init__(self, folder: JobFolder) -> None:
        self.folder = folder
        self._last = 0.0

    def progress(self, done: float, total: float, **more: float) -> None:
        """`done` of `total`; other numbers as they are."""
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_EVENTS or done >= total:
            self._last = now
            share = min(1.0, done / total) if total else 0.0
            self.folder.add_event("progress", share=round(share, 5), done=round(done, 3), total=total, **more)

    def say(self, message: str) -> None:
        """A sentence."""
        self.folder.add_event("message", text=message)

    def picture(self, path: Path, index: int, item: str | None) -> None:
        """A picture is on the disk, and its record beside it."""
        self.folder.add_event("picture", path=str(path), index=index, item=item)


class TrainingProgress:
    """A training's progress as events; `studio.training.progress.Progress`."""

    def __init__(self, folder: JobFolder) -> None:
        self._reporter = Reporter(folder)
        self._folder = folder

    def begin(self, total_steps: int, done_steps: int) -> None:
        """Say how many steps there are."""
        self._folder.add_event("progress", share=done_steps / max(1, total_steps), done=done_steps, total=total_steps)

    def step(self, report: StepReport) -> None:
        """Step, loss, speed and time left."""
        self._reporter.progress(
            report.step,
            report.total_steps,
            loss=round(report.loss, 6),
            images_per_second=round(report.images_per_second, 3),
            seconds_left=round(report.seconds_left, 1),
        )

    def say(self, message: str) -> None:
        """A sentence."""
        print(message, flush=True)
        self._reporter.say(message)

    def end(self) -> None:
        """Nothing."""
