"""Batches: handed in as one job, and told request by request. Watching, cancelling and trying again are those of jobs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, Response

from studio.api.batch_asks import BatchAsk
from studio.api.cursors import cursor_of, number, place_of
from studio.api.desk import Desk, DrawDesk, ReadDesk
from studio.api.once import Key
from studio.api.problems import Problem
from studio.api.routes.drawing import hand_in
from studio.api.routes.jobs import AJob, Cursor
from studio.api.settings import PREFIX
from studio.api.views import BatchView, JobView, ResultList, ResultView, job_view
from studio.batch.results import RequestResult, Told, read_results
from studio.service import Job

router = APIRouter(tags=["batches"])


@router.post("/batches", status_code=202, response_model=JobView)
def batch(desk: DrawDesk, request: Request, ask: BatchAsk, key: Key = None) -> Response:
    """Draw, compose and train what a document says; the answer is one job."""
    return hand_in(desk, request, ask, key)


@router.get("/batches/{job_id}")
def show_batch(desk: ReadDesk, job_id: AJob) -> BatchView:
    """How far a batch is. All counts are 0 before it is begun."""
    job = _batch(desk, job_id)
    counts = Counter(result.state for result in _results(desk, job_id))
    failed = counts["failed"] + counts["refused"]
    return BatchView(
        job=job_view(desk, job), requests=counts.total(), done=counts["done"], failed=failed, waiting=counts["waiting"]
    )


@router.get("/batches/{job_id}/results")
def batch_results(
    desk: ReadDesk,
    job_id: AJob,
    state: Annotated[list[Told], Query(max_length=4)] = [],  # noqa: B006 - FastAPI copies it
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Cursor = None,
) -> ResultList:
    """What came of every request, in the document's order; none before the batch is begun."""
    _batch(desk, job_id)
    after = -1.0 if cursor is None else number(place_of(cursor))
    found = [each for each in _results(desk, job_id) if each.index > after and (not state or each.state in state)]
    shown = found[:limit]
    more = cursor_of(repr(float(shown[-1].index))) if len(found) > limit else None
    made = _made(desk, job_id)
    return ResultList(results=[_view(desk, job_id, each, made) for each in shown], next=more)


@router.get("/batches/{job_id}/sheet", response_class=FileResponse, responses={200: {"content": {"image/png": {}}}})
def batch_sheet(desk: ReadDesk, job_id: AJob) -> Response:
    """The first contact sheet: pictures by axes, with the values at the edges; there when the batch has ended."""
    _batch(desk, job_id)
    sheets = sorted(desk.studio.request(job_id).output_dir.glob("contact-sheet*.png"))
    if not sheets:
        raise Problem(404, f"The batch {job_id} has no contact sheet yet.")
    return FileResponse(sheets[0], media_type="image/png", headers={"Cache-Control": "private, no-cache"})


def _batch(desk: Desk, job_id: str) -> Job:
    job = desk.job(job_id)
    if job.kind != "batch":
        raise Problem(404, f"The job {job_id} is no batch.")
    return job


def _results(desk: Desk, job_id: str) -> list[RequestResult]:
    return read_results(desk.studio.request(job_id).output_dir)


def _made(desk: Desk, job_id: str) -> dict[str, tuple[int | None, str | None]]:
    """File's name -> the picture's number in the job, and the id in the library, as events told them."""
    found: dict[str, tuple[int | None, str | None]] = {}
    seen: dict[str, int] = {}
    output = desk.studio.request(job_id).output_dir.absolute()
    for event in desk.studio.store.folder(job_id).events():
        text, item = str(event.data.get("path", "")), event.data.get("item")
        index = seen.setdefault(text, len(seen)) if event.kind == "picture" else None
        if text and Path(text).is_relative_to(output):
            found[Path(text).relative_to(output).as_posix()] = (index, None if item is None else str(item))
    return found


def _view(desk: Desk, job_id: str, result: RequestResult, made: dict[str, tuple[int | None, str | None]]) -> ResultView:
    index, item = made.get(result.file or "", (None, None))
    return ResultView(
        index=result.index,
        where=desk.told(result.where),
        axes={key: desk.told(value) for key, value in result.axes.items()},
        kind=result.kind,
        title=result.title,
        seed=result.seed,
        state=result.state,
        error=desk.told(result.error),
        seconds=result.seconds,
        score=result.score,
        picture=None if index is None else f"{PREFIX}/jobs/{job_id}/pictures/{index}",
        item=item,
    )
