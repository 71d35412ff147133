"""The table of jobs: handing in and looking. `changes` has what people do to them, `claims` what workers do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from studio.jobs.folder import HandedIn, JobFolder
from studio.jobs.ids import check_id, new_id
from studio.jobs.job import AT_WORK, COLUMN_LIST, COLUMNS, ENDED, Job, State, job_of
from studio.jobs.migrations import MIGRATIONS
from studio.jobs.rebuilding import rebuild
from studio.jobs.row import new_job
from studio.jobs.specs import JobSpec, Submit
from studio.pipelines.errors import MissingFileError
from studio.pipelines.files import output_errors
from studio.storage.database import Database
from studio.storage.home import Home

PAUSED = "paused"
INSERT = f"INSERT INTO jobs ({COLUMN_LIST}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - our own column names


Jobs: TypeAlias = list[Job]
Ids: TypeAlias = list[str]


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs a list shows; None does not filter."""

    states: Sequence[str] | None = None
    kinds: Sequence[str] | None = None
    owner: str | None = None
    parent: str | None = None


class JobStore:
    """All jobs under one home.

    Attributes:
        home: where everything lies. database: the table.

    Raises:
        StudioError: the database cannot be opened; says why.
    """

    def __init__(self, home: Home) -> None:
        self.home = home.create()
        self.database = Database(home.jobs_database, MIGRATIONS, self._rebuild)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def _rebuild(self, database: Database) -> None:
        rebuild(database, self.home)

    # ------------------------------------------------------------------------------------------------------- handing in

    def submit(self, spec: JobSpec, submit: Submit | None = None, affinity: str = "") -> Job:
        """Hand in a job; it is on the disk when this returns.

        Args:
            affinity: what it is quick to do together with.

        Raises:
            UserError: it needs a job that there is not. OutputError: the disk is full, or cannot be written to.
        """
        submit = Submit() if submit is None else submit
        if submit.key is not None and (known := self._by_key(submit.owner, submit.key)) is not None:
            return known
        for needed in submit.needs:
            self.get(needed)
        created = time.time()
        folder = self._new_folder(created)
        default_output = self.home.outputs / folder.path.name
        output_dir = default_output if spec.output_dir is None else Path(spec.output_dir).expanduser().absolute()
        handed_in = HandedIn(folder.path.name, created, spec, submit, output_dir)
        folder.write_job(handed_in)
        try:
            job = self.insert(handed_in, affinity)
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)  # it was not handed in, and must not come back as if it were
            raise
        folder.add_event("state", state=job.state, position=job.position, affinity=affinity)
        return job

    def insert(self, handed_in: HandedIn, affinity: str = "", position: float | None = None) -> Job:
        """Add the row of a job whose folder is there; at the end of the queue, or at `position`."""
        submit = handed_in.submit
        with self.database.write() as connection:
            if position is None:
                position = connection.execute("SELECT COALESCE(MAX(position), 0) + 1 FROM jobs").fetchone()[0]
            job = new_job(handed_in, float(position), affinity)
            connection.execute(INSERT, [getattr(job, name) for name in COLUMNS])
            connection.executemany("INSERT OR IGNORE INTO needs VALUES (?, ?)", [(job.id, needed) for needed in submit.needs])
        return job

    def _new_folder(self, created: float) -> JobFolder:
        while True:
            path = self.home.jobs / new_id(created)
            with output_errors(path):
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
            return JobFolder(path)

    def _by_key(self, owner: str, key: str) -> Job | None:
        rows = self.database.read(f"SELECT {COLUMN_LIST} FROM jobs WHERE owner = ? AND key = ?", (owner, key))  # noqa: S608
        return job_of(rows[0]) if rows else None

    # ---------------------------------------------------------------------------------------------------------- looking

    def get(self, job_id: str) -> Job:
        """One job. Raises MissingFileError when there is none of that id."""
        rows = self.database.read(f"SELECT {COLUMN_LIST} FROM jobs WHERE id = ?", (check_id(job_id),))  # noqa: S608
        if not rows:
            raise MissingFileError(f"There is no job {job_id}; `studio jobs list` shows those that there are.")
        return job_of(rows[0])

    def list(self, wanted: JobFilter | None = None, *, limit: int = 100, before: float | None = None) -> Jobs:
        """Jobs, the last handed in first.

        Args:
            before: only those with a smaller `position`: that of the last of the page before.
        """
        clauses, values = _where(wanted)
        if before is not None:
            clauses.append("position < ?")
            values.append(before)
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        sql = f"SELECT {COLUMN_LIST} FROM jobs {where} ORDER BY position DESC LIMIT ?"  # noqa: S608 - values are bound
        return [job_of(row) for row in self.database.read(sql, [*values, limit])]

    def queue(self, limit: int = 10_000) -> Jobs:
        """Waiting jobs in the order in which they will be begun."""
        sql = f"SELECT {COLUMN_LIST} FROM jobs WHERE state = 'queued' ORDER BY held, priority DESC, position LIMIT ?"  # noqa: S608
        return [job_of(row) for row in self.database.read(sql, (limit,))]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        found = {row[0]: row[1] for row in self.database.read("SELECT state, COUNT(*) FROM jobs GROUP BY state")}
        return {state.value: int(found.get(state.value, 0)) for state in State}

    def needs_of(self, job_id: str) -> Ids:
        """Ids of the jobs that must have succeeded before."""
        return [row[0] for row in self.database.read("SELECT needed FROM needs WHERE job = ? ORDER BY needed", (job_id,))]

    def folder(self, job_id: str) -> JobFolder:
        """The job's folder."""
        return JobFolder(self.home.jobs / check_id(job_id))

    # ----------------------------------------------------------------------------------------------------- whole queue

    @property
    def is_paused(self) -> bool:
        """Whether no further job is begun."""
        rows = self.database.read("SELECT value FROM settings WHERE name = ?", (PAUSED,))
        return bool(rows) and rows[0][0] == "1"

    def pause(self, wanted: bool) -> None:
        """Begin no further jobs, or go on; running ones are left alone. It lasts over restarts."""
        with self.database.write() as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (PAUSED, "1" if wanted else "0"))

    def running(self) -> Jobs:
        """Jobs that a process works on, or worked on when it died."""
        marks = ", ".join("?" * len(AT_WORK))
        sql = f"SELECT {COLUMN_LIST} FROM jobs WHERE state IN ({marks}) ORDER BY started"  # noqa: S608
        return [job_of(row) for row in self.database.read(sql, sorted(AT_WORK))]

    def ended_before(self, moment: float) -> Jobs:
        """Jobs that ended before `moment`, the oldest first."""
        marks = ", ".join("?" * len(ENDED))
        sql = f"SELECT {COLUMN_LIST} FROM jobs WHERE state IN ({marks}) AND finished < ? ORDER BY finished"  # noqa: S608
        return [job_of(row) for row in self.database.read(sql, [*sorted(ENDED), moment])]

    def note(self, job: Job) -> None:
        """Write the job's state down in its folder."""
        values = {"held": job.held, "attempt": job.attempt, "message": job.message, "error": job.error}
        self.folder(job.id).add_event("state", state=job.state, **values)


def _where(wanted: JobFilter | None) -> tuple[list[str], list[object]]:
    clauses: list[str] = []
    values: list[object] = []
    if wanted is None:
        return clauses, values
    for column, chosen in (("state", wanted.states), ("kind", wanted.kinds)):
        if chosen is not None:
            clauses.append(f"{column} IN ({', '.join('?' * len(chosen))})")
            values.extend(chosen)
    for column, one in (("owner", wanted.owner), ("parent", wanted.parent)):
        if one is not None:
            clauses.append(f"{column} = ?")
            values.append(one)
    return clauses, values
