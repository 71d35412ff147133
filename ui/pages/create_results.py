"""What came of it: the job's progress, its pictures, the large view of one, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.jobs.job import ENDED, Job
from studio.service import JobFilter, Studio
from studio.ui.parts.asking import attempt, latest, with_worker
from studio.ui.parts.html import act, card_head, empty, job_card, note, table, tile
from studio.ui.parts.timing import refresh
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, words_for

_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


@dataclass(frozen=True)
class Results:
    """The parts that the rest of the page needs."""

    job_id: gr.Textbox
    outputs: Sequence[Any]
    look: Callable[..., Any]


def build_results(
    studio: Studio, settings: UiSettings, kinds: tuple[str, ...] = ("generate",), prefix: str = "create"
) -> Results:
    """The column of a page that draws."""
    job_id = gr.Textbox(visible=False, label="job id", elem_id=f"{prefix}-job")
    seen = gr.State(None)
    with gr.Column(elem_classes="card"):
        html(card_head("results_title"))
        card = board(elem_id=f"{prefix}-run")
        told = html()
        large = board(elem_id=f"{prefix}-large")
        pictures = board(elem_id=f"{prefix}-pictures")
    outputs = [job_id, seen, card, pictures]

    def look(wanted: str, known: Any = None, request: gr.Request | None = None) -> Any:
        words = words_for(request)
        job = latest(studio, kinds, job_id=wanted)
        if job is None:
            return "", None, empty(words(f"{prefix}_nothing"), words(f"{prefix}_nothing_hint")), ""
        shown = studio.result(job.id)
        stamp = _preview_stamp(studio, job)
        state = repr((job.id, job.state, job.held, job.progress, job.message, len(shown.pictures), stamp, words.language))
        if state == known:
            return (gr.skip(),) * len(outputs)
        asked = studio.request(job.id).spec
        total = _total(asked)
        html = job_card(job, words, actions=_actions(job, words))
        tiles = [_tile(job, number, path, words) for number, path in enumerate(shown.pictures)]
        waiting = max(0, total - len(tiles)) if job.state not in ENDED else 0
        tiles += ['<span class="pic" aria-hidden="true"></span>'] * min(waiting, 24)
        extra = _comparison(shown.facts or {}, words) + _preview(job, stamp, words)
        return (
            job.id,
            state,
            html + _earlier(studio, job, kinds, words),
            extra + f'<div class="grid large">{"".join(tiles)}</div>',
        )

    def tick(wanted: str, known: Any, request: gr.Request) -> Any:
        return look(wanted, known, request)

    def do(wanted: str, request: gr.Request, event: gr.EventData) -> Any:
        target, what = str(event.id), str(event.act)
        if what == "choose":
            return (*look(target, None, request), "")
        actions: dict[str, Callable[[], object]] = {
            "cancel": lambda: studio.cancel(target),
            "retry": with_worker(studio, settings, lambda: studio.retry(target)),
        }
        said = attempt(actions[what]) if what in actions else ""
        return (*look(wanted, None, request), said)

    def show(request: gr.Request, event: gr.EventData) -> str:
        return _large(studio, str(event.id), words_for(request))

    def in_large(request: gr.Request, event: gr.EventData) -> str:
        if str(event.act) == "favourite":
            attempt(lambda: studio.edit(str(event.id), favourite=not studio.item(str(event.id)).favourite))
        return ""

    refresh(tick, outputs, inputs=[job_id, seen], every=1.5)
    card.pick(do, [job_id], [*outputs, told], **_QUIET)
    pictures.pick(show, None, large, **_QUIET)
    large.pick(in_large, None, large, **_QUIET)
    return Results(job_id, outputs, look)


def _tile(job: Job, number: int, path: Path, words: Words) -> str:
    """One picture; those of a comparison say by which strategy."""
    under = f"<b>{escape(path.parent.name)}</b>" if job.kind == "compare" else ""
    return tile("show", f"{job.id}:{number}", f"/media/jobs/{job.id}/{number}/small", f"{words('picture')} {number + 1}", under)


def _preview_stamp(studio: Studio, job: Job) -> int:
    """When the job's preview was written; 0 where there is none."""
    path = studio.store.folder(job.id).preview
    return path.stat().st_mtime_ns if path.is_file() else 0


def _preview(job: Job, stamp: int, words: Words) -> str:
    """The pictures as they come along; of a composition also where each concept acts, which stays to be looked at."""
    if not stamp or (job.state in ENDED and job.kind != "compose"):
        return ""
    picture = f'<img src="/media/previews/{job.id}?{stamp}" alt="{words("preview")}">'
    if job.state not in ENDED:
        return f'<figure class="preview">{picture}</figure>'
    return f'<details class="preview"><summary>{words("where_each_acts")}</summary>{picture}</details>'


def _total(spec: Any) -> int:
    """How many pictures were asked for; 0 where it cannot be known beforehand."""
    if hasattr(spec, "plan"):
        return spec.plan.num_images if spec.kind == "compose" else 0
    return int(getattr(spec, "num_images", 0)) * max(1, len(getattr(spec, "prompts", ()) or (1,)))


def _actions(job: Job, words: Words) -> str:
    if job.state in ("failed", "canceled"):
        return act("retry", job.id, words("run_retry"))
    return "" if job.state == "succeeded" else act("cancel", job.id, words("run_cancel"))


def _earlier(studio: Studio, job: Job, kinds: tuple[str, ...], words: Words) -> str:
    """What was asked for before."""
    others = [other for other in studio.jobs(JobFilter(kinds=kinds), limit=5) if other.id != job.id]
    if not others:
        return ""
    chips = "".join(act("choose", other.id, escape(other.title[:32]), style="chip") for other in others)
    return f'<div class="chips" style="margin:10px 0 12px" role="group" aria-label="{words("earlier")}">{chips}</div>'


def _large(studio: Studio, target: str, words: Words) -> str:
    """One picture as it is, with its links."""
    job_id, _, number = target.partition(":")
    result = studio.result(job_id)
    index = int(number) if number.isdigit() else 0
    if index >= len(result.pictures):
        return ""
    source = f"/media/jobs/{job_id}/{index}/whole"
    item = result.items[index] if index < len(result.items) else ""
    links = [f'<a class="link" download="{escape(result.pictures[index].name)}" href="{source}">{words("download")}</a>']
    if item:
        links.append(act("favourite", item, words("favourite")))
        links.append(f'<a class="link" href="/gallery?item={item}">{words("details")}</a>')
        links.append(f'<a class="link" href="/create?start={item}">{words("start_from")}</a>')
    links.append(act("close", "", words("close")))
    return (
        f'<figure class="whole"><img class="pic" src="{source}" alt="{words("picture")} {index + 1}">'
        f'<figcaption class="actions">{"".join(links)}</figcaption></figure>'
    )


def _comparison(facts: Any, words: Words) -> str:
    """What a job says besides its pictures: conflicts, or the scores of a comparison, a row for each strategy."""
    lines, rows = facts.get("lines"), facts.get("rows")
    if lines:
        return f"<h3>{words('conflicts_title')}</h3>{note(chr(10).join(map(str, lines)))}"
    if not rows:
        return ""
    best = max((row["score"] or 0.0 for row in rows), default=0.0)
    cells = [
        [
            escape(str(row["strategy"])),
            "–" if row["score"] is None else f"{row['score']:.3f}",
            str(row["passes"]),
            f"{row['seconds']:.1f} s",
            escape(str(row["refused"])),
        ]
        for row in rows
    ]
    chosen = next((n for n, row in enumerate(rows) if row["score"] == best and best > 0), None)
    head = [words("strategy"), words("score"), words("passes"), words("time"), ""]
    return f'<div style="margin-bottom:14px">{table(head, cells, chosen)}</div>'
