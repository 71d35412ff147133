"""All jobs: what runs, what waits in which order, what is over; and what can be done to each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.jobs.job import AT_WORK, ENDED, Job
from studio.service import JobFilter, State, Studio
from studio.ui.parts.asking import attempt, start_worker
from studio.ui.parts.html import act, ago, card_head, empty, job_card, link, note
from studio.ui.parts.timing import refresh
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

MOST_OVER = 30
MOST_WAITING = 60
PAGE_OF = {
    "train": "/train",
    "generate": "/create",
    "compose": "/compose",
    "compare": "/compose",
    "stylize": "/stylize",
    "batch": "/batch",
}
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    seen = gr.State(None)
    with gr.Column(elem_classes="card"):
        head = board(elem_id="queue-head")
        told = html(elem_id="queue-told")
        now = board(elem_id="queue-now")
    with gr.Column(elem_classes="card"):
        html(card_head("queue_over"))
        over = board(elem_id="queue-over")
        prune = gr.Button(label("queue_prune"), size="sm", elem_id="queue-prune")
    outputs = [seen, head, now, over]

    def look(known: Any = None, request: gr.Request | None = None) -> Any:
        words = words_for(request)
        running, waiting = studio.store.running(), studio.queue()
        ended = studio.jobs(JobFilter(states=tuple(ENDED)), limit=MOST_OVER)
        jobs = [*running, *waiting[:MOST_WAITING], *ended]
        paused = studio.store.is_paused
        state = repr(
            ([(job.id, job.state, job.held, job.progress, job.message, job.position) for job in jobs], paused, words.language)
        )
        if state == known:
            return (gr.skip(),) * len(outputs)
        return state, _head(studio, paused, words), _now(studio, running, waiting, words), _over(ended, words)

    def tick(known: Any, request: gr.Request) -> Any:
        return look(known, request)

    def do(request: gr.Request, event: gr.EventData) -> Any:
        said = attempt(lambda: _do(studio, settings, str(event.act), str(event.id)))
        return (*look(None, request), said)

    def forget(request: gr.Request) -> Any:
        words = words_for(request)
        count = len(studio.prune(outputs=False))
        return (*look(None, request), note(words("pruned", count=count), "good"))

    refresh(tick, outputs, inputs=[seen], every=1.5)
    for part in (head, now, over):
        part.pick(do, None, [*outputs, told], **_QUIET)
    prune.click(forget, None, [*outputs, told], **_QUIET)


def _do(studio: Studio, settings: UiSettings, what: str, job_id: str) -> None:
    actions: dict[str, Callable[[], object]] = {
        "pause_all": studio.pause,
        "resume_all": studio.resume,
        "stop": lambda: studio.pause(job_id),
        "resume": lambda: studio.resume(job_id),
        "cancel": lambda: studio.cancel(job_id),
        "retry": lambda: studio.retry(job_id),
        "up": lambda: _up(studio, job_id),
        "first": lambda: studio.reorder(job_id, before=studio.queue()[0].id),
    }
    if what in actions:
        actions[what]()
    if what in ("resume_all", "resume", "retry"):
        start_worker(studio, settings)


def _up(studio: Studio, job_id: str) -> None:
    """One place earlier."""
    ids = [job.id for job in studio.queue()]
    if job_id in ids and ids.index(job_id) > 0:
        studio.reorder(job_id, before=ids[ids.index(job_id) - 1])


def _head(studio: Studio, paused: bool, words: Words) -> str:
    counts = studio.store.counts()
    about = words("queue_counts", running=counts[State.RUNNING], waiting=counts[State.QUEUED], done=counts[State.SUCCEEDED])
    button = act("resume_all", "", words("queue_resume")) if paused else act("pause_all", "", words("queue_pause"))
    pill = f'<span class="pill paused">{words("queue_paused")}</span>' if paused else ""
    return f'<div class="actions"><span class="hint" style="flex:1 1 220px">{about}</span>{pill}{button}</div>'


def _now(studio: Studio, running: list[Job], waiting: list[Job], words: Words) -> str:
    if not running and not waiting:
        return empty(words("queue_empty"), words("queue_empty_hint"), link("/create", words("draw_something"), main=True))
    cards = [job_card(job, words, actions=_running_actions(job, words)) for job in running]
    cards += [
        job_card(job, words, actions=_waiting_actions(job, number, words)) for number, job in enumerate(waiting[:MOST_WAITING])
    ]
    more = len(waiting) - MOST_WAITING
    tail = f'<p class="hint">{words("queue_more", count=more)}</p>' if more > 0 else ""
    return f'<div class="stack">{"".join(cards)}{tail}</div>'


def _running_actions(job: Job, words: Words) -> str:
    page = link(PAGE_OF.get(job.kind, "/queue"), words("watch"))
    if job.state not in AT_WORK or job.state == "canceling":
        return page
    stop = act("stop", job.id, words("run_stop")) if job.kind == "train" else ""
    return page + stop + act("cancel", job.id, words("run_cancel"))


def _waiting_actions(job: Job, number: int, words: Words) -> str:
    moves = act("up", job.id, words("move_up")) + act("first", job.id, words("move_first")) if number > 0 else ""
    hold = act("resume", job.id, words("run_resume")) if job.held else act("stop", job.id, words("run_stop"))
    return moves + hold + act("cancel", job.id, words("run_cancel"))


def _over(jobs: list[Job], words: Words) -> str:
    if not jobs:
        return f'<p class="hint">{words("nothing_over")}</p>'
    cards = []
    for job in jobs:
        when = (
            f'<span class="hint">{words.known(f"kind_{job.kind}", job.kind)} · {ago(job.finished or job.created, words)}</span>'
        )
        again = act("retry", job.id, words("run_retry")) if job.state in ("failed", "canceled") else ""
        cards.append(job_card(job, words, actions=when + again))
    return f'<div class="stack">{"".join(cards)}</div>'
