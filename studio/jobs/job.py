"""A job as the table knows it, and the states it goes through."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a job is.

    ::

        queued -> running -> succeeded | failed
          |  ^       |  \\
          |  |       |   interrupted (its process died, or it was paused) -> queued
          |  +-------+
          |      canceling -> canceled
          +-----------------> canceled
    """

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    INTERRUPTED = "interrupted"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED})
"""States that only `retry` leaves."""

AT_WORK = frozenset({State.RUNNING, State.CANCELING})
"""States in which a process works on it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row.

    Attributes:
        id: sortable by the time it was handed in. kind: a key of `SPECS`. owner, title, parent: as handed in.
        state: see `State`. held: not to be begun until resumed. priority, position: higher, then lower, goes first.
        attempt: how often it was begun; max_attempts: how often it may be.
        device: where it is wanted; None for anywhere. runs_on: where it runs, or ran. time_limit_seconds: of running time.
        created, started, finished, heartbeat, lease_until: seconds since 1970; None where it did not happen.
        progress: 0 to 1. message: where it is, a sentence. error: why it failed, a sentence.
        worker: id of the supervisor that has claimed it. host, pid, pid_started: of the process that works on it.
        affinity: what it is quick to do together with, or after. key: of the hand-in, see `Submit`.
    """

    id: str
    kind: str
    owner: str
    title: str
    parent: str | None
    state: str
    held: bool
    priority: int
    position: float
    attempt: int
    max_attempts: int
    device: str | None
    runs_on: str | None
    time_limit_seconds: float | None
    created: float
    started: float | None
    finished: float | None
    heartbeat: float | None
    lease_until: float | None
    progress: float
    message: str
    error: str
    worker: str | None
    host: str | None
    pid: int | None
    pid_started: float | None
    affinity: str
    key: str | None

    @property
    def is_ended(self) -> bool:
        """Whether it is over, one way or another."""
        return self.state in ENDED


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Job))
"""The table's columns, in the order of `Job`'s fields."""

COLUMN_LIST = ", ".join(COLUMNS)

_HELD = COLUMNS.index("held")


def job_of(row: sqlite3.Row) -> Job:
    """The job in a row of `SELECT COLUMN_LIST`."""
    values: list[Any] = list(row)
    values[_HELD] = bool(values[_HELD])
    return Job(*values)
