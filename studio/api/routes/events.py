"""What happens to a job, as server-sent events that can be taken up again where they broke off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import APIRouter, Header, Query
from sse_starlette import EventSourceResponse, ServerSentEvent

from studio.api.desk import Desk, ReadDesk
from studio.api.problems import Problem
from studio.api.routes.jobs import AJob
from studio.api.views import event_data

router = APIRouter(tags=["jobs"])

POLL_SECONDS = 0.25
PING_SECONDS = 15


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
def job_events(
    desk: ReadDesk,
    job_id: AJob,
    follow: Annotated[bool, Query(description="false: end after what has happened so far.")] = True,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,15}$", description="Only what happened after this event.")
    ] = None,
) -> EventSourceResponse:
    """Events `state`, `progress`, `picture`, `message` … of a job, with their numbers as ids; `end` after the last."""
    desk.job(job_id)
    if follow:
        desk.counter.throttle.check_streams(desk.caller.owner)
    return EventSourceResponse(_told(desk, job_id, int(last_event_id or 0), follow=follow), ping=PING_SECONDS)


async def _told(desk: Desk, job_id: str, after: int, *, follow: bool) -> AsyncIterator[ServerSentEvent]:
    reader = _Reader(desk, job_id)
    with desk.counter.throttle.stream(desk.caller.owner):
        while True:
            over, found = await to_thread.run_sync(reader.read)
            for data in found:
                if data["number"] > after:
                    yield ServerSentEvent(json.dumps(data, ensure_ascii=False), event=data["kind"], id=str(data["number"]))
            if over or not follow:
                yield ServerSentEvent(json.dumps({"state": reader.state}), event="end")
                return
            await anyio.sleep(POLL_SECONDS)


class _Reader:
    """Reads on in a job's events where it stopped the last time. state: the job's at the last look; "" when it is gone."""

    def __init__(self, desk: Desk, job_id: str) -> None:
        self.desk, self.job_id = desk, job_id
        self.state = ""
        self._position = self._number = 0
        self._pictures: dict[str, int] = {}

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the job is over, and what happened since."""
        try:
            job = self.desk.job(self.job_id)  # before its events: none that came before its end is missed
        except Problem:
            self.state = ""
            return True, []
        self.state = job.state
        found = []
        for event, end in self.desk.studio.store.folder(self.job_id).events_from(self._position, self._number):
            self._position, self._number = end, event.number
            found.append(event_data(self.desk, event, self._pictures))
        return job.is_ended, found
