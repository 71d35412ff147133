"""Jobs: what there are, how they are getting on, and changing one's mind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, PlainTextResponse, Response

from studio.api.asks import JobId
from studio.api.cursors import cursor_of, number, place_of
from studio.api.desk import AdminDesk, Desk, DrawDesk, ReadDesk
from studio.api.problems import Problem
from studio.api.settings import PREFIX
from studio.api.views import JobDetail, JobList, JobView, PictureLink, PictureList, QueueView, job_detail, job_view, pictures_of
from studio.jobs.specs import SPECS, Int
from studio.jobs.workers import all_workers
from studio.pipelines.errors import UserError
from studio.service import Job, JobFilter, State

router = APIRouter(tags=["jobs"])

AJob = Annotated[str, InPath(pattern=r"^[0-9]{6}-[0-9]{6}-[a-z0-9]{6}$", description="The job's id.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before.")]
KindName = Literal["train", "generate", "compose", "compare", "conflicts", "stylize", "batch"]
assert set(SPECS) == set(KindName.__args__)  # type: ignore[attr-defined]

PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


class Move(BaseModel):
    """Where to: before another waiting job, or to another priority."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    before: JobId | None = None
    priority: Annotated[Int, Field(ge=-1000, le=1000)] | None = None


class Wish(BaseModel):
    """What a running training shall do now, besides what is due."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    what: Literal["save", "sample"]


@router.get("/jobs")
def list_jobs(
    desk: ReadDesk,
    state: Annotated[list[State], Query(max_length=7)] = [],  # noqa: B006 - FastAPI copies it
    kind: Annotated[list[KindName], Query(max_length=7)] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Cursor = None,
) -> JobList:
    """Jobs, the last handed in first."""
    wanted = JobFilter(states=state or None, kinds=kind or None, owner=desk.owner)
    before = None if cursor is None else number(place_of(cursor))
    found = desk.studio.jobs(wanted, limit=limit + 1, before=before)
    shown = found[:limit]
    more = cursor_of(repr(shown[-1].position)) if len(found) > limit else None
    return JobList(jobs=[job_view(desk, job) for job in shown], next=more)


@router.get("/jobs/{job_id}")
def show_job(desk: ReadDesk, job_id: AJob) -> JobDetail:
    """All that is known of a job."""
    return job_detail(desk, desk.job(job_id))


@router.get("/jobs/{job_id}/log", response_class=PlainTextResponse)
def job_log(desk: ReadDesk, job_id: AJob, lines: Annotated[int, Query(ge=1, le=1000)] = 50) -> Response:
    """The last lines that the job's process printed."""
    desk.job(job_id)
    return PlainTextResponse(desk.told(desk.studio.log(job_id, lines)).encode("utf-8", "replace"))


@router.get("/jobs/{job_id}/pictures")
def job_pictures(desk: ReadDesk, job_id: AJob) -> PictureList:
    """The pictures that a job has drawn so far."""
    desk.job(job_id)
    found = enumerate(pictures_of(desk, job_id))
    links = [PictureLink(index=n, name=path.name, url=f"{PREFIX}/jobs/{job_id}/pictures/{n}") for n, path in found]
    return PictureList(pictures=links)


@router.get("/jobs/{job_id}/pictures/{index}", response_class=FileResponse, responses={200: {"content": {"image/*": {}}}})
def job_picture(desk: ReadDesk, job_id: AJob, index: Annotated[int, InPath(ge=0, le=1_000_000)]) -> Response:
    """One of them."""
    desk.job(job_id)
    paths = pictures_of(desk, job_id)
    path = paths[index] if index < len(paths) else None
    root = desk.studio.request(job_id).output_dir.resolve()
    # A link in the job's folder must not lead out of it.
    if path is None or not path.is_file() or not path.resolve().is_relative_to(root) or path.suffix.lower() not in PICTURES:
        raise Problem(404, f"The job {job_id} has no picture {index}.")
    return FileResponse(path, media_type=PICTURES[path.suffix.lower()], headers={"Cache-Control": "private, no-cache"})


@router.post("/jobs/{job_id}/cancel")
def cancel(desk: DrawDesk, job_id: AJob) -> JobView:
    """Take a waiting job out, or stop a running one; what it made so far stays. An ended one stays as it is."""
    return _change(desk, job_id, lambda: desk.studio.cancel(job_id))


@router.post("/jobs/{job_id}/retry")
def retry(desk: DrawDesk, job_id: AJob) -> JobView:
    """Queue a failed or canceled job again; a training goes on from its last checkpoint."""
    return _change(desk, job_id, lambda: desk.studio.retry(job_id))


@router.post("/jobs/{job_id}/pause")
def pause(desk: DrawDesk, job_id: AJob) -> JobView:
    """Pause a job; a running training saves everything and stops."""
    return _change(desk, job_id, lambda: desk.studio.pause(job_id))


@router.post("/jobs/{job_id}/resume")
def resume(desk: DrawDesk, job_id: AJob) -> JobView:
    """Go on with a paused job."""
    return _change(desk, job_id, lambda: desk.studio.resume(job_id))


@router.post("/jobs/{job_id}/move")
def move(desk: DrawDesk, job_id: AJob, to: Move) -> JobView:
    """Change a waiting job's place in the queue."""
    if to.before is None and to.priority is None:
        raise Problem(422, "Say where to: before which job, or to which priority.")
    if to.priority is not None and to.priority > 0 and not desk.caller.may("admin"):
        raise Problem(403, "Only the scope admin may go before others: take a priority of 0 or less.")
    if to.before is not None:
        desk.job(to.before)
    return _change(desk, job_id, lambda: desk.studio.reorder(job_id, before=to.before, priority=to.priority))


@router.post("/jobs/{job_id}/wish")
def wish(desk: DrawDesk, job_id: AJob, wished: Wish) -> JobView:
    """Let a running training save or draw its samples now."""

    def make() -> None:
        desk.studio.wish(job_id, wished.what)

    return _change(desk, job_id, make)


@router.get("/queue")
def queue(desk: ReadDesk) -> QueueView:
    """The queue: what waits (of the caller's own), and whether anybody works."""
    waiting = [job.id for job in desk.studio.queue() if desk.owner in (None, job.owner)]
    store = desk.studio.store
    counts = store.counts() if desk.caller.sees_all else {"queued": len(waiting)}
    alive = sum(worker.is_alive for worker in all_workers(store))
    return QueueView(paused=store.is_paused, counts=counts, waiting=waiting, workers=alive)


@router.post("/queue/pause")
def pause_queue(desk: AdminDesk) -> QueueView:
    """Begin no further jobs."""
    desk.studio.pause()
    return queue(desk)


@router.post("/queue/resume")
def resume_queue(desk: AdminDesk) -> QueueView:
    """Go on."""
    desk.studio.resume()
    return queue(desk)


def _change(desk: Desk, job_id: str, change: Callable[[], Job | None]) -> JobView:
    desk.job(job_id)
    try:
        change()
    except UserError as error:
        raise Problem(409, desk.told(str(error))) from error
    return job_view(desk, desk.job(job_id))
