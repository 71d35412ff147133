"""Handing in from a page: a job is written, a worker is there, and what goes wrong is a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from studio.jobs.job import Job
from studio.jobs.specs import JobSpec
from studio.pipelines.errors import StudioError
from studio.service import JobFilter, Studio
from studio.ui.parts.html import note
from studio.ui.settings import UiSettings
from studio.ui.strings import Words


def hand_in(studio: Studio, settings: UiSettings, words: Words, spec: Callable[[], JobSpec]) -> tuple[str, str]:
    """The new job's id and a note about it; an empty id and the reason if it cannot be handed in.

    Args:
        spec: makes the request; its own mistakes become the note, too.
    """
    try:
        job = studio.ask(spec())
        start_worker(studio, settings)
    except StudioError as error:
        return "", note(str(error), "bad")
    except ValueError as error:  # pydantic's, of a request that no schema allows
        return "", note(readable(error), "bad")
    return job.id, note(words("handed_in", title=job.title[:80]), "good")


def start_worker(studio: Studio, settings: UiSettings) -> None:
    """See to it that somebody works."""
    if settings.worker:
        studio.ensure_worker()


def with_worker(studio: Studio, settings: UiSettings, action: Callable[[], object]) -> Callable[[], None]:
    """Do something that gives a worker work, and see to it that there is one."""

    def both() -> None:
        action()
        start_worker(studio, settings)

    return both


def readable(error: ValueError) -> str:
    """A sentence for each thing that a schema refuses."""
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    return "\n".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details(include_url=False, include_input=False))


def attempt(action: Callable[[], object]) -> str:
    """Do it; "" or a note with the reason why not."""
    try:
        action()
    except StudioError as error:
        return note(str(error), "bad")
    return ""


def latest(studio: Studio, kinds: tuple[str, ...], *, job_id: str | None = None) -> Job | None:
    """The job with this id, else the last one handed in of these kinds."""
    if job_id:
        with contextlib.suppress(StudioError):  # an old address: the last job is shown instead
            job = studio.job(job_id)
            if job.kind in kinds:
                return job
    found = studio.jobs(JobFilter(kinds=kinds), limit=1)
    return found[0] if found else None
