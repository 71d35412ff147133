"""What this machine has: devices, memory, versions, attention backend; where things lie; what went wrong last."""

from __future__ import annotations

import threading
from html import escape
from typing import Any

import gradio as gr
import psutil

from studio.pipelines.errors import StudioError
from studio.service import JobFilter, Studio
from studio.service.doctor import Report
from studio.ui.parts.html import ago, card_head, facts, megabytes, note, table
from studio.ui.parts.timing import refresh
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

    seen, examination = gr.State(None), Examination(studio)
    outputs = [seen, machine, error, report]

    def look(known: Any, request: gr.Request) -> Any:
        words = words_for(request)
        examination.begin()
        state = repr((examination.number, words.language))
        return (
            state,
            _machine(studio, words),
            _last_error(studio, words),
            gr.skip() if state == known else examination.html(words),
        )

    def again(request: gr.Request) -> str:
        examination.begin(again=True)
        return examination.html(words_for(request))

    refresh(look, outputs, inputs=[seen], every=3.0)
    examine.click(again, None, report, api_visibility="private", show_progress="hidden", queue=False)


class Examination:
    """What the doctor says, asked for in the background: it takes seconds, and nobody who looks in waits for it.

    Attributes:
        number: changes whenever there is something else to say.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.number = 0
        self._found: Report | StudioError | None = None
        self._busy = threading.Lock()

    def begin(self, *, again: bool = False) -> None:
        """Ask, unless that is being done, or was done already (and not `again`)."""
        if (self._found is None or again) and self._busy.acquire(blocking=False):
            self._say(None)
            threading.Thread(target=self._ask, daemon=True).start()

    def html(self, words: Words) -> str:
        """The report, or that it takes a while, or why there is none."""
        if self._found is None:
            return f'<p class="hint">{words("doctor_busy")}</p>'
        return note(str(self._found), "bad") if isinstance(self._found, StudioError) else _report(self._found, words)

    def _ask(self) -> None:
        try:
            self._say(self.studio.doctor())
        except StudioError as error:
            self._say(error)
        finally:
            self._busy.release()

    def _say(self, found: Report | StudioError | None) -> None:
        self._found = found
        self.number += 1


def _machine(studio: Studio, words: Words) -> str:
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(studio.home.root))
    lies = f'<p class="hint" style="margin-top:14px;overflow-wrap:anywhere">{words("home")} {escape(str(studio.home.root))}</p>'
    values = facts(
        [
            (words("processors"), f"{psutil.cpu_count()} ({psutil.cpu_percent():.0f} %)"),
            (words("memory"), words("of", part=megabytes(memory.total - memory.available), whole=megabytes(memory.total))),
            (words("disk"), words("free", size=megabytes(disk.free))),
        ]
    )
    return values + lies


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


def _report(found: Report, words: Words) -> str:
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
