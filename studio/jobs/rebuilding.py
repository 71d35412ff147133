"""The table of jobs made anew from the jobs' folders: order, states and attempts as the folders tell them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from studio.jobs.folder import Event, HandedIn, JobFolder
from studio.jobs.ids import is_id
from studio.jobs.job import AT_WORK, COLUMN_LIST, COLUMNS, ENDED, Job, State
from studio.jobs.row import new_job
from studio.pipelines.errors import StudioError
from studio.storage.database import Database
from studio.storage.home import Home

_INSERT = f"INSERT OR IGNORE INTO jobs ({COLUMN_LIST}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - our own names


@dataclass(frozen=True)
class _Told:
    """What a job's events say about its row."""

    position: float | None = None
    priority: int | None = None
    affinity: str = ""
    state: str = State.QUEUED
    held: bool | None = None
    attempt: int = 0
    message: str = ""
    error: str = ""
    started: float | None = None
    finished: float | None = None
    progress: float = 0.0
    worker: str | None = None
    host: str | None = None
    pid: int | None = None
    pid_started: float | None = None
    runs_on: str | None = None


def rebuild(database: Database, home: Home) -> int:
    """Fill an empty table from the folders, and return how many jobs it has then. What cannot be read is passed over.

    A job that was at work is so again, under the same claim: its worker goes on, or the next one takes it over.
    """
    return len(add_missing(database, home, known=frozenset()))


def add_missing(database: Database, home: Home, known: Iterable[str]) -> list[str]:
    """Add a row for each folder whose id is not in `known`: a machine may have stopped between the folder and the row."""
    seen = frozenset(known)
    jobs: list[tuple[Job, tuple[str, ...]]] = []
    for path in sorted(home.jobs.iterdir()) if home.jobs.is_dir() else ():
        if not is_id(path.name) or path.name in seen:
            continue
        folder = JobFolder(path)
        try:
            handed_in = folder.read_job()
        except StudioError:
            continue
        if handed_in.id == path.name:
            jobs.append((_row(handed_in, _told(folder.events())), handed_in.submit.needs))
    # Those without a place of their own were handed in last, just before the end.
    jobs.sort(key=lambda each: (each[0].position, each[0].created, each[0].id))
    with database.write() as connection:
        last = float(connection.execute("SELECT COALESCE(MAX(position), 0) FROM jobs").fetchone()[0])
        for job, needs in jobs:
            placed = job if job.position != float("inf") else replace(job, position=last + 1.0)
            last = max(last, placed.position)
            connection.execute(_INSERT, [getattr(placed, name) for name in COLUMNS])
            connection.executemany("INSERT OR IGNORE INTO needs VALUES (?, ?)", [(job.id, needed) for needed in needs])
    return [job.id for job, _ in jobs]


def _told(events: Iterable[Event]) -> _Told:
    names = {field.name for field in fields(_Told)}
    told: dict[str, object] = {}
    for event in events:
        if event.kind in ("state", "moved", "process"):
            told |= {name: value for name, value in event.data.items() if name in names}
            state = event.data.get("state")
            if state == State.RUNNING:
                told |= {"started": event.time, "finished": None, "pid": None, "pid_started": None}
            elif state in ENDED:
                told["finished"] = event.time
            elif state == State.QUEUED:
                told |= {"started": None, "finished": None, "progress": 0.0}
        elif event.kind == "progress":
            told["progress"] = event.data.get("share", 0.0)
    return _Told(**told)  # type: ignore[arg-type]


def _row(handed_in: HandedIn, told: _Told) -> Job:
    job = new_job(handed_in, float("inf") if told.position is None else float(told.position), told.affinity)
    state = State(told.state)
    at_work = state in AT_WORK
    finished = told.finished if told.finished is not None or state not in ENDED else time.time()
    return replace(
        job,
        state=state,
        held=job.held if told.held is None else bool(told.held),
        priority=job.priority if told.priority is None else int(told.priority),
        attempt=int(told.attempt),
        message=str(told.message),
        error=str(told.error),
        started=told.started,
        finished=finished,
        progress=float(told.progress) if state != State.QUEUED else 0.0,
        worker=told.worker if at_work else None,
        host=told.host if at_work else None,
        pid=told.pid if at_work else None,
        pid_started=told.pid_started if at_work else None,
        runs_on=told.runs_on,
    )
