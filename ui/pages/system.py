"""What this machine has: devices, memory, versions, attention backend; where things lie; what went wrong last."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
import psutil

from studio.pipelines.errors import StudioError
from studio.service import JobFilter, Studio
from studio.ui.parts.html import ago, card_head, facts, megabytes, note, table
from studio.ui.parts.timing import first_time, refresh
from studio.ui.parts.widgets import html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    with gr.Row(elem_classes="two even"):
        with gr.Column():
            with gr.Column(elem_classes="card"):
                html(card_head("machine"))
                machine = html(elem_id="machine")
            with gr.Column(elem_classes="card"):
                html(card_head("last_error"))
                error = html(elem_id="last-error")
        with gr.Column(elem_classes="card"):
            html(card_head("doctor", hint=True))
            examine = gr.Button(label("doctor_again"), size="sm", elem_id="doctor")
            report = html(elem_id="doctor-report")

    def look(request: gr.Request) -> tuple[str, str]:
        words = words_for(request)
        return _machine(studio, words), _last_error(studio, words)

    def ask(request: gr.Request) -> str:
        return _report(studio, words_for(request))

    refresh(look, [machine, error], every=5.0)
    examine.click(ask, None, report, api_visibility="private", show_progress="minimal", concurrency_limit=1)
    first_time(lambda: "", [report])


def _machine(studio: Studio, words: Words) -> str:
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(studio.home.root))
    return facts(
        [
            (words("processors"), f"{psutil.cpu_count()} ({psutil.cpu_percent():.0f} %)"),
            (words("memory"), words("of", part=megabytes(memory.total - memory.available), whole=megabytes(memory.total))),
            (words("disk"), words("free", size=megabytes(disk.free))),
            (words("home"), str(studio.home.root)),
        ]
    )


def _last_error(studio: Studio, words: Words) -> str:
    """The last failed job in words, with the end of its log."""
    failed = studio.jobs(JobFilter(states=("failed",)), limit=1)
    if not failed:
        return note(words("no_error"), "good")
    job = failed[0]
    try:
        log = studio.log(job.id, 12)
    except StudioError:
        log = ""
    tail = f'<details><summary>{words("log")}</summary><pre class="log" tabindex="0">{escape(log)}</pre></details>' if log else ""
    when = ago(job.finished or job.created, words)
    return f'{note(job.error, "bad")}<p class="hint">{escape(job.title[:120])} · {when}</p>{tail}'


def _report(studio: Studio, words: Words) -> str:
    try:
        found = studio.doctor()
    except StudioError as error:
        return note(str(error), "bad")
    findings = "".join(note(f"{each.what} {each.mend}".strip(), "warn" if each.is_wrong else "good") for each in found.findings)
    pairs: list[list[str]] = [
        ["studio", escape(found.studio)],
        ["Python", escape(found.python)],
        [words("system"), escape(found.system)],
    ]
    groups: list[Any] = [found.versions, found.devices, found.attention]
    for group in groups:
        pairs += [[escape(str(name)), escape(str(value if value is not None else "–"))] for name, value in group.items()]
    return f'<div class="stack">{findings}{table([words("what"), words("is")], pairs)}</div>'
