"""The row of a job that was just handed in."""

from __future__ import annotations

from studio.jobs.folder import HandedIn
from studio.jobs.job import Job, State


def new_job(handed_in: HandedIn, position: float, affinity: str) -> Job:
    """The row of a job that was just handed in."""
    submit = handed_in.submit
    return Job(
        id=handed_in.id,
        kind=handed_in.spec.kind,
        owner=submit.owner,
        title=(handed_in.spec.title() if submit.title is None else submit.title)[:500],
        parent=submit.parent,
        state=State.QUEUED,
        held=submit.held,
        priority=submit.priority,
        position=position,
        attempt=0,
        max_attempts=submit.max_attempts,
        device=submit.device,
        runs_on=None,
        time_limit_seconds=submit.time_limit_seconds,
        created=handed_in.created,
        started=None,
        finished=None,
        heartbeat=None,
        lease_until=None,
        progress=0.0,
        message="",
        error="",
        worker=None,
        host=None,
        pid=None,
        pid_started=None,
        affinity=affinity,
        key=submit.key,
    )
