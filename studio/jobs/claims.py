"""What workers do to the table: claim a job under a lease, renew it, say how it ended, and take over from the dead.

A claim is one `BEGIN IMMEDIATE` transaction, so no two workers ever have the same job. Whoever holds one renews its lease;
every change asks that the claim is still the same (worker and attempt), so one that was taken for dead cannot overwrite
what its successor did.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from studio.jobs.job import AT_WORK, COLUMN_LIST, ENDED, Job, State, job_of
from studio.jobs.processes import is_alive
from studio.jobs.store import PAUSED, JobStore

LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Claimant:
    """Who claims: a worker's id, and the machine it runs on."""

    worker: str
    host: str

    @classmethod
    def here(cls, worker: str) -> Claimant:
        """On this machine."""
        return cls(worker, socket.gethostname())


def claim(
    store: JobStore,
    claimant: Claimant,
    kinds: Sequence[str],
    device: str,
    *,
    affinity: str | None = None,
    busy_owners: Collection[str] = (),
    only_first_attempts: bool = False,
) -> Job | None:
    """Take the next waiting job, or None.

    The order is priority, then owners who have nothing running yet, then the one handed in first.

    Args:
        kinds: which kinds. device: where it would run; jobs that want another one are passed over.
        affinity: only jobs with this one. busy_owners: owners to pass to the back.
        only_first_attempts: None if the next one has been begun before: its process died then, and it should run alone.
    """
    clauses = ["state = 'queued'", "held = 0", f"kind IN ({', '.join('?' * len(kinds))})", "(device IS NULL OR device = ?)"]
    values: list[object] = [*kinds, device]
    if affinity is not None:
        clauses.append("affinity = ?")
        values.append(affinity)
    order = "priority DESC, position"
    if busy_owners:
        order = f"priority DESC, owner IN ({', '.join('?' * len(busy_owners))}), position"
    now = time.time()
    with store.database.write() as connection:
        paused = connection.execute("SELECT 1 FROM settings WHERE name = ? AND value = '1'", (PAUSED,)).fetchone()
        if paused is not None:
            return None
        row = connection.execute(
            f"SELECT {COLUMN_LIST} FROM jobs WHERE {' AND '.join(clauses)} AND NOT EXISTS "  # noqa: S608 - values are bound
            "(SELECT 1 FROM needs LEFT JOIN jobs AS other ON other.id = needs.needed "
            "WHERE needs.job = jobs.id AND (other.state IS NULL OR other.state <> 'succeeded')) "
            f"ORDER BY {order} LIMIT 1",
            [*values, *busy_owners],
        ).fetchone()
        if row is None:
            return None
        job = job_of(row)
        if only_first_attempts and job.attempt:
            return None
        connection.execute(
            "UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = ?, host = ?, pid = NULL, pid_started = NULL, "
            "runs_on = ?, started = ?, heartbeat = ?, lease_until = ?, progress = 0, message = '', error = '' WHERE id = ?",
            (claimant.worker, claimant.host, device, now, now, now + LEASE_SECONDS, job.id),
        )
    claimed = store.get(job.id)
    store.note(claimed)
    return claimed


def set_process(store: JobStore, job: Job, pid: int, pid_started: float) -> bool:
    """Note which process works on a claimed job, in its folder too; False if the claim is lost."""
    process = {"worker": job.worker, "host": job.host, "pid": pid, "pid_started": pid_started, "runs_on": job.runs_on}
    store.folder(job.id).add_event("process", **process)
    return _change(store, job, "pid = ?, pid_started = ?", (pid, pid_started))


def renew(store: JobStore, job: Job, *, progress: float | None = None, message: str | None = None) -> State | None:
    """Renew the lease, and note where the job is; its state now, or None if the claim is lost."""
    now = time.time()
    sets = ["heartbeat = ?", "lease_until = ?"]
    values: list[object] = [now, now + LEASE_SECONDS]
    if progress is not None:
        sets.append("progress = ?")
        values.append(progress)
    if message is not None:
        sets.append("message = CASE state WHEN 'canceling' THEN message ELSE ? END")
        values.append(message)
    if not _change(store, job, ", ".join(sets), values):
        return None
    return State(store.get(job.id).state)


def finish(store: JobStore, job: Job, outcome: str, *, message: str = "", error: str = "") -> Job | None:
    """Write down how a claimed job ended; None if the claim is lost.

    Args:
        outcome: "succeeded", "failed", "canceled", or "interrupted": it was stopped or its process died. An interrupted job
            that somebody paused waits for them; of the others, those that may be begun again are queued.
    """
    now = time.time()
    with store.database.write() as connection:
        row = connection.execute(
            f"SELECT {COLUMN_LIST} FROM jobs WHERE id = ? AND worker = ? AND attempt = ? AND state IN ('running', 'canceling')",  # noqa: S608
            (job.id, job.worker, job.attempt),
        ).fetchone()
        if row is None:
            return None
        present = job_of(row)
        state, message, error = _next_state(present, outcome, message, error)
        attempt = present.attempt - (state == State.INTERRUPTED)  # to pause a job is no failed attempt
        progress = 1.0 if state == State.SUCCEEDED else 0.0 if state == State.QUEUED else present.progress
        connection.execute(
            "UPDATE jobs SET state = ?, attempt = ?, progress = ?, message = ?, error = ?, finished = ?, lease_until = NULL, "
            "pid = NULL, pid_started = NULL, worker = NULL, host = NULL WHERE id = ?",
            (state, attempt, progress, message, error, now if state in ENDED else None, job.id),
        )
    ended = store.get(job.id)
    store.note(ended)
    return ended


def give_back(store: JobStore, job: Job) -> Job | None:
    """Queue a claimed job again as if it had not been begun: the worker was told to go, which is no fault of the job's."""
    with store.database.write() as connection:
        changed = connection.execute(
            "UPDATE jobs SET state = CASE state WHEN 'canceling' THEN 'canceled' ELSE 'queued' END, attempt = attempt - 1, "
            "progress = 0, worker = NULL, host = NULL, pid = NULL, pid_started = NULL, lease_until = NULL, message = ? "
            "WHERE id = ? AND worker = ? AND attempt = ? AND state IN ('running', 'canceling')",
            ("the worker was stopped", job.id, job.worker, job.attempt),
        ).rowcount
    if not changed:
        return None
    back = store.get(job.id)
    store.note(back)
    return back


def orphans(store: JobStore, claimant: Claimant, living_workers: Collection[str]) -> list[Job]:
    """Jobs at work whose worker is gone: on this machine by its absence, on another one when the lease has run out."""
    now = time.time()
    found = []
    for job in store.running():
        if job.worker == claimant.worker or job.worker in living_workers:
            continue
        same_host = job.host == claimant.host
        if same_host or job.lease_until is None or job.lease_until < now:
            found.append(job)
    return found


def adopt(store: JobStore, claimant: Claimant, job: Job) -> Job | None:
    """Take over an orphan as its new worker, with the attempt as it is; None if another one was quicker."""
    now = time.time()
    with store.database.write() as connection:
        changed = connection.execute(
            "UPDATE jobs SET worker = ?, host = ?, heartbeat = ?, lease_until = ? "
            "WHERE id = ? AND attempt = ? AND worker IS ? AND state IN ('running', 'canceling')",
            (claimant.worker, claimant.host, now, now + LEASE_SECONDS, job.id, job.attempt, job.worker),
        ).rowcount
    return store.get(job.id) if changed else None


def process_lives(job: Job, claimant: Claimant) -> bool:
    """Whether the job's own process still runs; what runs on another machine is taken for dead once its lease is over."""
    return (
        job.host == claimant.host and job.pid is not None and job.pid_started is not None and is_alive(job.pid, job.pid_started)
    )


def _change(store: JobStore, job: Job, sets: str, values: Sequence[object]) -> bool:
    with store.database.write() as connection:
        sql = f"UPDATE jobs SET {sets} WHERE id = ? AND worker = ? AND attempt = ? AND state IN ({_MARKS})"  # noqa: S608
        changed = connection.execute(sql, [*values, job.id, job.worker, job.attempt, *sorted(AT_WORK)]).rowcount
    return bool(changed)


_MARKS = ", ".join("?" * len(AT_WORK))


def _next_state(job: Job, outcome: str, message: str, error: str) -> tuple[State, str, str]:
    if outcome != State.INTERRUPTED:
        if outcome == State.CANCELED or (job.state == State.CANCELING and outcome == State.FAILED):
            return State.CANCELED, message or "canceled", ""
        return State(outcome), message, error
    if job.state == State.CANCELING:
        return State.CANCELED, message or "canceled", ""
    if job.held:
        return State.INTERRUPTED, "paused; `studio jobs resume` goes on", ""
    if job.attempt < job.max_attempts:
        return State.QUEUED, f"begun again: {message or 'its process ended before its time'}", ""
    times = "once" if job.attempt == 1 else f"{job.attempt} times"
    return (
        State.FAILED,
        "",
        f"It was begun {times}, and its process ended before its time {'each time' if job.attempt > 1 else ''}".strip()
        + (f": {message}" if message else "."),
    )
