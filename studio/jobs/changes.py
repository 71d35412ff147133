"""What people do to jobs: cancel, try again, pause, resume, move, remove."""

from __future__ import annotations

import shutil
import time

from studio.jobs.ids import check_id
from studio.jobs.job import Job, State
from studio.jobs.store import JobStore
from studio.pipelines.errors import UserError
from studio.pipelines.files import output_errors


def cancel(store: JobStore, job_id: str) -> Job:
    """Take a waiting job out; ask a running one to stop. What has ended stays as it is."""
    with store.database.write() as connection:
        changed = connection.execute(
            "UPDATE jobs SET state = 'canceled', finished = ?, message = 'canceled before it was begun' "
            "WHERE id = ? AND state IN ('queued', 'interrupted')",
            (time.time(), check_id(job_id)),
        ).rowcount
        changed += connection.execute(
            "UPDATE jobs SET state = 'canceling', message = 'stopping' WHERE id = ? AND state = 'running'", (job_id,)
        ).rowcount
    job = store.get(job_id)
    if not changed:
        return job
    if job.state == State.CANCELING:
        store.folder(job_id).ask_to_stop(True)
    store.note(job)
    if job.state == State.CANCELED:
        drop_dependents(store, job)
    return job


def retry(store: JobStore, job_id: str) -> Job:
    """Queue an ended or interrupted job again, with its attempts counted anew; a training goes on where it stopped.

    Raises:
        UserError: it succeeded, or has not ended.
    """
    job = store.get(job_id)
    if job.state not in (State.FAILED, State.CANCELED, State.INTERRUPTED):
        raise UserError(f"The job {job_id} is {job.state}; only failed, canceled and interrupted ones can be tried again.")
    return _requeue(store, job_id, job.state, attempt=0)


def hold(store: JobStore, job_id: str) -> Job:
    """Pause one job: a waiting one is passed over; a running one is stopped, saves what it can, and waits.

    Raises:
        UserError: it has ended.
    """
    job = store.get(job_id)
    if job.is_ended or job.state == State.CANCELING:
        raise UserError(f"The job {job_id} is {job.state}; there is nothing to pause.")
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET held = 1 WHERE id = ?", (job_id,))
    job = store.get(job_id)
    if job.state == State.RUNNING:
        store.folder(job_id).ask_to_stop(True)
    store.note(job)
    return job


def release(store: JobStore, job_id: str) -> Job:
    """Resume a paused job. Raises UserError when it is not paused."""
    job = store.get(job_id)
    if not job.held:
        raise UserError(f"The job {job_id} is not paused.")
    if job.state == State.INTERRUPTED:
        return _requeue(store, job_id, job.state, attempt=job.attempt)
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET held = 0 WHERE id = ?", (job_id,))
    job = store.get(job_id)
    store.note(job)
    return job


def move(store: JobStore, job_id: str, *, before: str | None = None, priority: int | None = None) -> Job:
    """Change a waiting job's place: to before another waiting one, whose priority it takes, or to another priority.

    Raises:
        UserError: one of them is not waiting.
    """
    job = _waiting(store, job_id)
    if before is not None:
        other = _waiting(store, before)
        rows = store.database.read("SELECT MAX(position) FROM jobs WHERE position < ? AND id <> ?", (other.position, job_id))
        lower = other.position - 1.0 if rows[0][0] is None else float(rows[0][0])
        position, level = (lower + other.position) / 2.0, other.priority
        if not lower < position < other.position:
            _spread_positions(store)
            return move(store, job_id, before=before)
    else:
        position, level = job.position, job.priority if priority is None else priority
    with store.database.write() as connection:
        connection.execute(
            "UPDATE jobs SET position = ?, priority = ? WHERE id = ? AND state = 'queued'", (position, level, job_id)
        )
    job = store.get(job_id)
    store.folder(job_id).add_event("moved", position=job.position, priority=job.priority)
    return job


def remove(store: JobStore, job_id: str) -> None:
    """Take an ended job out of the table, and remove its folder; what it made stays.

    Raises:
        UserError: it has not ended.
    """
    job = store.get(job_id)
    if not job.is_ended:
        raise UserError(f"The job {job_id} is {job.state}; cancel it before it is removed.")
    folder = store.folder(job_id).path
    doomed = folder.with_name(f".removed-{job_id}")
    with output_errors(folder):
        if folder.is_dir():
            folder.rename(doomed)  # a folder with its own name would bring the row back
    with store.database.write() as connection:
        connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
    shutil.rmtree(doomed, ignore_errors=True)


def drop_dependents(store: JobStore, job: Job) -> None:
    """Cancel all that waits for a job that failed or was canceled, and what waits for those."""
    waiting = [job]
    while waiting:
        ended = waiting.pop()
        rows = store.database.read(
            "SELECT jobs.id FROM needs JOIN jobs ON jobs.id = needs.job WHERE needed = ? AND state IN ('queued', 'interrupted')",
            (ended.id,),
        )
        for (job_id,) in rows:
            with store.database.write() as connection:
                connection.execute(
                    "UPDATE jobs SET state = 'canceled', finished = ?, message = ? WHERE id = ? AND state IN "
                    "('queued', 'interrupted')",
                    (
                        time.time(),
                        f"it needs {ended.id}, which {'failed' if ended.state == State.FAILED else 'was canceled'}",
                        job_id,
                    ),
                )
            dependent = store.get(job_id)
            store.note(dependent)
            waiting.append(dependent)


def _waiting(store: JobStore, job_id: str) -> Job:
    job = store.get(job_id)
    if job.state != State.QUEUED:
        raise UserError(f"The job {job_id} is {job.state}; only waiting ones have a place in the queue.")
    return job


def _requeue(store: JobStore, job_id: str, state: str, attempt: int) -> Job:
    store.folder(job_id).ask_to_stop(False)
    with store.database.write() as connection:
        connection.execute(
            "UPDATE jobs SET state = 'queued', held = 0, attempt = ?, error = '', message = '', progress = 0, started = NULL, "
            "finished = NULL, worker = NULL, host = NULL, pid = NULL, pid_started = NULL, lease_until = NULL "
            "WHERE id = ? AND state = ?",
            (attempt, job_id, state),
        )
    job = store.get(job_id)
    store.note(job)
    return job


def _spread_positions(store: JobStore) -> None:
    """Whole numbers again, where halving has used up the digits."""
    with store.database.write() as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM jobs ORDER BY position, id")]
        connection.executemany("UPDATE jobs SET position = ? WHERE id = ?", [(n, each) for n, each in enumerate(ids, 1)])
    for number, each in enumerate(ids, 1):
        store.folder(each).add_event("moved", position=float(number))


def prune(store: JobStore, older_than_seconds: float = 0.0, *, outputs: bool = False) -> list[str]:
    """Remove jobs that ended so long ago, and return their ids.

    Args:
        outputs: also what they made, where it lies in the home's own folder of outputs.
    """
    gone = []
    for job in store.ended_before(time.time() - older_than_seconds):
        remove(store, job.id)
        if outputs:
            shutil.rmtree(store.home.outputs / job.id, ignore_errors=True)
        gone.append(job.id)
    return gone
