"""One piece of a batch's work, wherever it is done: a group drawn, or a training run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from studio.batch.groups import sub_groups
from studio.batch.tasks import GroupTask, TrainTask
from studio.batch.training import train_task
from studio.batch.workshop import Drawn, Workshop
from studio.pipelines.errors import Cancelled, Interrupted, StudioError


@dataclass(frozen=True)
class Work:
    """A group, and which of its tasks are still to be done. `folder`: of a training."""

    group: GroupTask
    wanted: frozenset[str]
    folder: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        adapter: a training's file. failures: task id -> a sentence.
        files: of a training on another machine: everything in its folder, to be written here.
    """

    work: Work
    pictures: tuple[Drawn, ...] = ()
    adapter: Path | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    files: Mapping[str, bytes] = field(default_factory=dict)


def do_work(
    work: Work,
    workshop: Workshop,
    *,
    should_stop: Callable[[], bool] | None = None,
    photos: Path | None = None,
) -> Outcome:
    """Do one piece. What goes wrong with it is part of the outcome, and ends nothing else.

    Where a picture cannot be drawn, others with other adapters that were to share its forward are drawn without it.

    Raises:
        Cancelled, Interrupted: `should_stop` said so.
    """
    group = work.group
    started = time.monotonic()
    first = group.tasks[0]
    if isinstance(first, TrainTask):
        try:
            adapter = train_task(first, Path(work.folder), device=workshop.device, photos=photos, should_stop=should_stop)
        except (Cancelled, Interrupted):
            raise
        except StudioError as error:
            return Outcome(work, failures={first.id: str(error)}, seconds=time.monotonic() - started)
        return Outcome(work, adapter=adapter, seconds=time.monotonic() - started)
    pictures: list[Drawn] = []
    failures: dict[str, str] = {}
    seconds = 0.0
    waiting = [group]
    while waiting:
        part = waiting.pop(0)
        if not any(task.id in work.wanted for task in part.tasks):
            continue
        try:
            drawn = workshop.draw(part, work.wanted, should_stop=should_stop)
        except (Cancelled, Interrupted):
            raise
        except Exception as error:
            apart = sub_groups(part)
            if len(apart) > 1 and isinstance(error, StudioError):
                waiting += apart
            else:
                failures |= {task.id: sentence_of(error) for task in part.tasks if task.id in work.wanted}
            continue
        pictures += drawn.pictures
        seconds += drawn.seconds
    return Outcome(work, pictures=tuple(pictures), failures=failures, seconds=seconds)


def sentence_of(error: Exception) -> str:
    """An error as one sentence; of one that nobody foresaw, with its kind."""
    if isinstance(error, StudioError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return "There is not enough memory for so many pictures at once: use a smaller --batch-size, or a smaller size."
    return f"{type(error).__name__}: {error}"
