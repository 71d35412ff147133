"""How far a job is, read from its folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from studio.jobs.job import ENDED, Job
from studio.service import Studio


def last_progress(studio: Studio, job_id: str) -> Mapping[str, Any]:
    """What the last line about progress says; empty if there is none."""
    events = deque((event.data for event in studio.store.folder(job_id).events() if event.kind == "progress"), maxlen=1)
    return events[0] if events else {}


def seconds_left(studio: Studio, job: Job) -> float | None:
    """The estimate of the process that works on it."""
    if job.state in ENDED:
        return None
    value = last_progress(studio, job.id).get("seconds_left")
    return None if value is None else float(value)
