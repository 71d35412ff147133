"""What the API tells of jobs and things: ids, never paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from pydantic import BaseModel, WithJsonSchema

from studio.api.desk import Desk
from studio.service import Event, Item, Job

_NOT_TOLD = frozenset({"pid", "pid_started", "host", "worker", "affinity", "position", "trashed_from"})
_WORDS = frozenset(
    {"prompt", "prompts", "negative_prompt", "words", "content_prompt", "style_prompt", "token", "class_noun", "trigger"}
    | {"caption_templates", "class_prompts", "sample_prompts", "description", "author"}
)
"""What somebody wrote is told as they wrote it, though it begin with a slash."""

Values = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
"""JSON values of any kind. Some makers of clients read `additionalProperties: true`, which means the same, as numbers only."""


class JobView(BaseModel):
    """A job. Times in seconds since 1970; null where it did not happen.

    state: queued, running, canceling, succeeded, failed, canceled or interrupted. held: waits until it is resumed.
    """

    id: str
    kind: str
    owner: str
    title: str
    state: str
    held: bool
    priority: int
    attempt: int
    max_attempts: int
    device: str | None
    runs_on: str | None
    created: float
    started: float | None
    finished: float | None
    progress: float
    message: str
    error: str


class JobDetail(JobView):
    """A job with what was asked and what it made. pictures: how many; items: ids of what is in the library now."""

    request: Values
    needs: list[str]
    pictures: int
    items: list[str]
    facts: Values


class JobList(BaseModel):
    """Jobs, the last handed in first. next: the cursor of the page after; null after the last."""

    jobs: list[JobView]
    next: str | None


class PictureLink(BaseModel):
    """A picture of a job: its number, its file's name, and where it is."""

    index: int
    name: str
    url: str


class PictureList(BaseModel):
    """All pictures of a job."""

    pictures: list[PictureLink]


class BatchView(BaseModel):
    """A batch's job, and how many of its requests are done, failed (or cannot be done at all), and still wait."""

    job: JobView
    requests: int
    done: int
    failed: int
    waiting: int


class ResultView(BaseModel):
    """One request of a batch. state: waiting, done, failed, or refused: it cannot be done at all.

    where: its place in the document. picture: where its picture is; item: the id of what it made in the library.
    """

    index: int
    where: str
    axes: dict[str, str]
    kind: str
    title: str
    seed: int | None
    state: str
    error: str
    seconds: float | None
    score: float | None
    picture: str | None
    item: str | None


class ResultList(BaseModel):
    """Requests in the document's order. next: the cursor of the page after; null after the last."""

    results: list[ResultView]
    next: str | None


class QueueView(BaseModel):
    """The queue. waiting: ids in the order in which they will be begun; counts: of all jobs by state."""

    paused: bool
    counts: dict[str, int]
    waiting: list[str]
    workers: int


class ItemView(BaseModel):
    """A thing of the library; see the fields of `studio library show`."""

    id: str
    kind: str
    name: str
    owner: str
    num_bytes: int
    added: float
    family: str | None
    type: str | None
    rank: int | None
    trigger: str | None
    class_noun: str | None
    score: float | None
    notes: str
    tags: list[str]
    favourite: bool
    trashed: float | None
    missing: bool
    has_thumbnail: bool
    facts: Values


class ItemList(BaseModel):
    """Things, the latest first. next: the cursor of the page after; null after the last."""

    items: list[ItemView]
    next: str | None


class Uploaded(BaseModel):
    """What was brought in. new: false where the library had the very same already."""

    item: ItemView
    new: bool


def job_view(desk: Desk, job: Job) -> JobView:
    """A job without what is only of use on its machine."""
    values = {name: getattr(job, name) for name in JobView.model_fields}
    title = desk.told(job.title) if job.kind == "batch" else job.title  # a batch has its file's path for a title
    return JobView(**values | {"message": desk.told(job.message), "error": desk.told(job.error), "title": title})


def job_detail(desk: Desk, job: Job) -> JobDetail:
    """All of a job."""
    asked = desk.studio.request(job.id)
    result = desk.studio.result(job.id)
    spec = asked.spec.model_dump(mode="json", exclude_defaults=True)
    spec.pop("output_dir", None)
    return JobDetail(
        **job_view(desk, job).model_dump(),
        request=told_values(desk, spec),
        needs=desk.studio.store.needs_of(job.id),
        pictures=len(pictures_of(desk, job.id)),
        items=list(result.items),
        facts=told_values(desk, dict(result.facts or {})),
    )


def item_view(desk: Desk, item: Item) -> ItemView:
    """A thing without its path."""
    values = {name: getattr(item, name) for name in ItemView.model_fields}
    return ItemView(**values | {"tags": list(item.tags), "facts": told_values(desk, dict(item.facts))})


def pictures_of(desk: Desk, job_id: str) -> list[Path]:
    """A job's pictures in the order in which they were drawn, whether or not somebody moved them away since."""
    events = desk.studio.store.folder(job_id).events()
    return list(dict.fromkeys(Path(str(event.data["path"])) for event in events if event.kind == "picture"))


def event_data(desk: Desk, event: Event, seen: dict[str, int]) -> dict[str, Any]:
    """What an event says. seen: numbers of the pictures so far, by path; kept up here."""
    data = dict(event.data)
    if event.kind == "picture":
        data["index"] = seen.setdefault(str(data.pop("path", "")), len(seen))
    return {"number": event.number, "time": event.time, "kind": event.kind, **told_values(desk, data)}


def told_values(desk: Desk, value: Any) -> Any:
    """JSON values without paths: a file of the library is told by its id, any other by its name."""
    if isinstance(value, Mapping):
        return {
            str(name): each if name in _WORDS else told_values(desk, each)
            for name, each in value.items()
            if name not in _NOT_TOLD
        }
    if isinstance(value, list | tuple):
        return [told_values(desk, each) for each in value]
    if isinstance(value, Path) or (isinstance(value, str) and _is_path(value)):
        return desk.name_of(Path(value))
    return desk.told(value) if isinstance(value, str) else value


def _is_path(text: str) -> bool:
    return "\n" not in text and (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute())
