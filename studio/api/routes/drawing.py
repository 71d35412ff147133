"""Asking for pictures and trainings: every one of them becomes a job."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from studio.api.asks import Ask, CompareAsk, ComposeAsk, ConflictsAsk, GenerateAsk, StylizeAsk, TrainAsk
from studio.api.desk import NOT_ENDED, Desk, DrawDesk, TrainDesk
from studio.api.once import Answer, Key, fingerprint_of, once
from studio.api.problems import Problem
from studio.api.views import JobView, job_view
from studio.service import JobFilter

router = APIRouter(tags=["asking"])


@router.post("/generate", status_code=202, response_model=JobView)
def generate(desk: DrawDesk, request: Request, ask: GenerateAsk, key: Key = None) -> Response:
    """Draw pictures from prompts, with or without adapters."""
    return hand_in(desk, request, ask, key)


@router.post("/compose", status_code=202, response_model=JobView)
def compose(desk: DrawDesk, request: Request, ask: ComposeAsk, key: Key = None) -> Response:
    """Draw a plan with several adapters."""
    return hand_in(desk, request, ask, key)


@router.post("/compare", status_code=202, response_model=JobView)
def compare(desk: DrawDesk, request: Request, ask: CompareAsk, key: Key = None) -> Response:
    """Draw a plan by several strategies, side by side, with scores."""
    return hand_in(desk, request, ask, key)


@router.post("/conflicts", status_code=202, response_model=JobView)
def conflicts(desk: DrawDesk, request: Request, ask: ConflictsAsk, key: Key = None) -> Response:
    """Measure how much a plan's adapters get in each other's way."""
    return hand_in(desk, request, ask, key)


@router.post("/stylize", status_code=202, response_model=JobView)
def stylize(desk: DrawDesk, request: Request, ask: StylizeAsk, key: Key = None) -> Response:
    """Draw the content of one picture in the style of another."""
    return hand_in(desk, request, ask, key)


@router.post("/train", status_code=202, response_model=JobView)
def train(desk: TrainDesk, request: Request, ask: TrainAsk, key: Key = None) -> Response:
    """Teach the model a concept of the library."""
    return hand_in(desk, request, ask, key)


def hand_in(desk: Desk, request: Request, ask: Ask, key: str | None) -> Response:
    """Make a job of what is asked for, once for each key."""
    asked = [request.url.path, ask.model_dump(mode="json")]
    # With the request in it: a key that is used again when its answer is forgotten never means another job.
    job_key = None if key is None else f"api {key} {fingerprint_of(asked)[:32]}"

    def make() -> Answer:
        _check_room(desk)
        job = desk.studio.ask(ask.to_spec(desk), ask.submit.to_submit(desk, job_key))
        if desk.counter.settings.worker:
            desk.studio.ensure_worker()
        return Answer(202, job_view(desk, job))

    return once(desk.counter.access, desk.caller.owner, key, asked, make)


def _check_room(desk: Desk) -> None:
    most = desk.counter.settings.limits.waiting_jobs
    waiting = desk.studio.jobs(JobFilter(states=NOT_ENDED, owner=desk.caller.owner), limit=most)
    if len(waiting) >= most:
        raise Problem(
            429, f"{most} of your jobs have not ended yet, which is the most; wait, or cancel some.", {"Retry-After": "60"}
        )
