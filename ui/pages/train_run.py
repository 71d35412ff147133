"""A training as it goes: progress, curves, samples, the choice; and what can be done to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from studio.jobs.job import Job
from studio.service import JobFilter, Studio
from studio.ui.parts.asking import attempt, latest, with_worker
from studio.ui.parts.html import act, card_head, empty, job_card, link
from studio.ui.parts.timing import refresh
from studio.ui.parts.training_run import curves, digest, run_view, sample_rows, verdict
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

KINDS = ("train",)


@dataclass(frozen=True)
class Run:
    """The parts that the rest of the page needs."""

    job_id: gr.Textbox
    logarithmic: gr.Checkbox
    outputs: Sequence[Any]
    look: Callable[..., Any]


def build_run(studio: Studio, settings: UiSettings) -> Run:
    """The column."""
    job_id = gr.Textbox(visible=False, label="job id", elem_id="train-job")
    seen = gr.State(None)
    with gr.Column(elem_classes="card"):
        html(card_head("run_title"))
        card = board(elem_id="train-run")
        told = html()
        chosen = html()
    with gr.Column(elem_classes="card", visible=False) as curves_card:
        logarithmic = gr.Checkbox(label=label("log_axis"), value=False)
        shown_curves = html(elem_id="train-curves")
    with gr.Column(elem_classes="card", visible=False) as samples_card:
        html(card_head("samples_title"))
        samples = html()
    outputs = [job_id, seen, card, chosen, curves_card, shown_curves, samples_card, samples]

    def look(wanted: str, log: bool, known: Any = None, request: gr.Request | None = None) -> Any:
        words = words_for(request)
        job = latest(studio, KINDS, job_id=wanted)
        if job is None:
            nothing = empty(words("no_run"), words("no_run_hint"))
            return "", None, nothing, "", gr.update(visible=False), "", gr.update(visible=False), ""
        view = run_view(studio, job)
        state = repr((digest(view), log, words.language))
        if state == known:
            return (gr.skip(),) * len(outputs)
        there = gr.update(visible=bool(view.metrics) or bool(view.samples))
        card_html = job_card(job, words, actions=_actions(studio, job, words))
        return (
            job.id, state, card_html + _others(studio, job, words), verdict(view, words),
            there, curves(view, words, logarithmic=log), there, sample_rows(view, words),
        )  # fmt: skip

    def tick(wanted: str, log: bool, known: Any, request: gr.Request) -> Any:
        return look(wanted, log, known, request)

    def do(wanted: str, log: bool, request: gr.Request, event: gr.EventData) -> Any:
        job_id, what = str(event.id), str(event.act)
        if what == "choose":
            return (*look(job_id, log, None, request), "")
        actions: dict[str, Callable[[], object]] = {
            "stop": lambda: studio.pause(job_id),
            "resume": with_worker(studio, settings, lambda: studio.resume(job_id)),
            "cancel": lambda: studio.cancel(job_id),
            "retry": with_worker(studio, settings, lambda: studio.retry(job_id)),
            "save": lambda: studio.wish(job_id, "save"),
            "sample": lambda: studio.wish(job_id, "sample"),
        }
        said = attempt(actions[what]) if what in actions else ""
        return (*look(wanted, log, None, request), said)

    refresh(tick, outputs, inputs=[job_id, logarithmic, seen], every=2.0)
    logarithmic.change(look, [job_id, logarithmic], outputs, show_progress="hidden", queue=False, api_visibility="private")
    card.pick(do, [job_id, logarithmic], [*outputs, told], show_progress="hidden", api_visibility="private")
    return Run(job_id, logarithmic, outputs, look)


def _actions(studio: Studio, job: Job, words: Words) -> str:
    """What can be done to a training in its state."""
    names: tuple[str, ...]
    if job.state == "running":
        names = ("save", "sample", "stop", "cancel")
    elif job.held:
        names = ("resume", "cancel")
    elif job.state in ("failed", "canceled"):
        names = ("retry",)
    elif job.state == "succeeded":
        result = studio.result(job.id)
        item = (studio.store.folder(job.id).read_result() or {}).get("item")
        use = link(f"/create?adapter={item}", words("use_it"), main=True) if item else ""
        report = f'<a class="link" target="_blank" href="/media/reports/{job.id}/index.html">{words("open_report")}</a>'
        return use + link("/compose", words("compose_it")) + report if result.adapter else ""
    else:
        names = ("stop", "cancel")
    return "".join(act(name, job.id, words(f"run_{name}")) for name in names)


def _others(studio: Studio, job: Job, words: Words) -> str:
    """Other trainings to look at."""
    others = [other for other in studio.jobs(JobFilter(kinds=KINDS), limit=6) if other.id != job.id]
    if not others:
        return ""
    chips = "".join(act("choose", other.id, escape(other.title[:40]), style="chip") for other in others)
    return f'<p class="hint" style="margin:14px 0 8px">{words("other_runs")}</p><div class="chips">{chips}</div>'
