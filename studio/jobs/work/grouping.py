"""Which waiting pictures are drawn in the next pass: those that can share one, fairly between people."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from studio.jobs.work.generating import PictureTask

WAIT_SECONDS = 0.05
"""How long a pass that is not full waits for others to come."""


class Pick(NamedTuple):
    """Picture number `number` of a task."""

    task: PictureTask
    number: int


class Grouper:
    """Chooses groups. Whose turn it is goes round: an owner with one picture never waits behind another's hundred.

    Args:
        max_rows: pictures in a pass, at most; a task's own batch size counts too.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._turns: dict[str, int] = {}
        self._clock = 0

    def next_group(self, tasks: Sequence[PictureTask]) -> list[Pick]:
        """The next pass's pictures; empty if there are none."""
        open_tasks = [task for task in tasks if task.waiting]
        if not open_tasks:
            return []
        first = min(open_tasks, key=lambda task: (self._turns.get(task.owner, -1), task.arrived))
        if not first.shareable:
            count = min(self.max_rows, first.spec.batch_size)
            self._took(first.owner)
            return [Pick(first, index) for index in first.waiting[:count]]
        # A job that asks for small batches has little memory to spare: it is never drawn in larger ones.
        limit = min(self.max_rows, first.spec.batch_size)
        fellows = [task for task in open_tasks if task.key == first.key and task.shareable and task.spec.batch_size >= limit]
        return self._rounds(first, fellows, limit)

    def should_wait(self, group: Sequence[Pick]) -> bool:
        """Whether a group that is not full should wait a little for others."""
        if not group or len(group) >= self.max_rows or not group[0].task.shareable:
            return False
        return time.monotonic() - min(pick.task.arrived for pick in group) < WAIT_SECONDS

    def _rounds(self, first: PictureTask, fellows: Sequence[PictureTask], limit: int) -> list[Pick]:
        """One picture of each owner in turn, the one whose turn it is first; within an owner the oldest task first."""
        by_owner: dict[str, list[Pick]] = {}
        for task in sorted(fellows, key=lambda each: each.arrived):
            by_owner.setdefault(task.owner, []).extend(Pick(task, index) for index in task.waiting)
        order = sorted(by_owner, key=lambda owner: (owner != first.owner, self._turns.get(owner, -1)))
        group: list[Pick] = []
        while len(group) < limit and any(by_owner.values()):
            for owner in order:
                if by_owner[owner] and len(group) < limit:
                    group.append(by_owner[owner].pop(0))
                    self._took(owner)
        return group

    def _took(self, owner: str) -> None:
        self._clock += 1
        self._turns[owner] = self._clock
