"""Many requests from a file: paste or send it, see what it becomes and what it costs, start, watch, retry, open the report."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from studio.pipelines.errors import StudioError
from studio.service import BatchSpec, Studio
from studio.ui.parts.asking import attempt, hand_in, latest, with_worker
from studio.ui.parts.batches import SUFFIXES, kept_file, look_at, seconds_per_picture
from studio.ui.parts.html import act, card_head, clock, empty, job_card, note, table
from studio.ui.parts.timing import first_time, refresh
from studio.ui.parts.widgets import board, html
from studio.ui.settings import UiSettings
from studio.ui.strings import Words, label, words_for

FIRST_TEXT = "a red cat in the snow --num_images 2 --seed 7\na {blue|green} robot on the beach\n"
MOST_SHOWN = 40
FORMS = ("txt", "yaml", "csv", "jsonl")
_QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def build(studio: Studio, settings: UiSettings) -> None:
    """The page."""
    seen = gr.State(None)
    job_id = gr.Textbox(visible=False, label="job id", elem_id="batch-job")
    with gr.Row(elem_classes="two even"):
        with gr.Column(elem_classes="card"):
            text = gr.Textbox(
                label=label("batch_text"), info=label("batch_text_info"), lines=9, value=FIRST_TEXT, elem_id="batch-text"
            )
            form = gr.Radio(list(FORMS), value="txt", label=label("batch_form"))
            sent = gr.File(
                label=label("batch_file"),
                file_types=list(SUFFIXES),
                type="filepath",
                height=130,
                elem_id="batch-file",
                elem_classes="drop",
            )
            with gr.Row():
                preview = gr.Button(label("batch_look"), elem_id="batch-look")
                go = gr.Button(label("batch_go"), variant="primary", elem_id="batch-go")
            told = html(elem_id="batch-told")
        with gr.Column():
            with gr.Column(elem_classes="card"):
                html(card_head("results_title"))
                card = board(elem_id="batch-run")
                pictures = html()
            with gr.Column(elem_classes="card"):
                html(card_head("batch_expansion", hint=True))
                expansion = html(elem_id="batch-expansion")
    outputs = [job_id, seen, card, pictures]

    def expanded(text: str, form: str, sent: str | None, request: gr.Request) -> str:
        words = words_for(request)
        try:
            path = kept_file(studio, text, form, sent)
            found = look_at(path)
        except StudioError as error:
            return note(str(error), "bad")
        path.unlink(missing_ok=True)
        return _expansion(found.requests, seconds_per_picture(studio), words)

    def batch(text: str, form: str, sent: str | None, request: gr.Request) -> tuple[str, str]:
        """Run a batch file: `text` in the format `form` (txt, yaml, csv, jsonl), or a file. Returns the job's id and a note."""
        words = words_for(request)

        def spec() -> BatchSpec:
            path = kept_file(studio, text, form, sent)
            look_at(path)
            return BatchSpec(file=str(path), options=("--adapters-dir", str(studio.home.library / "adapters")))

        return hand_in(studio, settings, words, spec)

    def look(wanted: str, known: Any = None, request: gr.Request | None = None) -> Any:
        words = words_for(request)
        job = latest(studio, ("batch",), job_id=wanted)
        if job is None:
            return "", None, empty(words("no_batch"), words("no_batch_hint")), ""
        folder = studio.request(job.id).output_dir
        made = sorted(folder.glob("pictures/*.png")) or sorted(folder.glob("*.png"))
        state = repr((job.id, job.state, job.progress, job.message, len(made), words.language))
        if state == known:
            return (gr.skip(),) * len(outputs)
        actions = [act("retry", job.id, words("batch_retry"))] if job.state in ("failed", "canceled") else []
        if job.state in ("queued", "running"):
            actions = [act("cancel", job.id, words("run_cancel"))]
        if (folder / "index.html").is_file():
            actions.append(
                f'<a class="link" target="_blank" href="/media/reports/{job.id}/index.html">{words("open_report")}</a>'
            )
        tiles = "".join(
            f'<img class="pic" loading="lazy" alt="{escape(path.stem)}" src="/media/outputs/{job.id}/{path.relative_to(folder)}">'
            for path in made[:48]
        )
        return job.id, state, job_card(job, words, actions="".join(actions)), f'<div class="grid">{tiles}</div>' if tiles else ""

    def tick(wanted: str, known: Any, request: gr.Request) -> Any:
        return look(wanted, known, request)

    def do(wanted: str, request: gr.Request, event: gr.EventData) -> Any:
        target = str(event.id)
        if str(event.act) == "cancel":
            said = attempt(lambda: studio.cancel(target))
        else:
            said = attempt(with_worker(studio, settings, lambda: studio.retry(target)))
        return (*look(wanted, None, request), said)

    gr.on([preview.click, text.blur, form.change, sent.change], expanded, [text, form, sent], expansion, **_QUIET)
    go.click(batch, [text, form, sent], [job_id, told], api_name="batch").then(look, job_id, outputs, **_QUIET)
    card.pick(do, job_id, [*outputs, told], **_QUIET)
    first_time(expanded, [expansion], inputs=[text, form, sent])
    refresh(tick, outputs, inputs=[job_id, seen], every=2.0)


def _expansion(requests: Any, seconds: float | None, words: Words) -> str:
    """What would be drawn, and for how long."""
    cost = clock(seconds * len(requests)) if seconds is not None else words("time_unknown")
    rows = []
    for each in requests[:MOST_SHOWN]:
        request = each.request
        rows.append(
            [escape(str(getattr(request, "prompt", "") or request.kind)[:160]), escape(str(getattr(request, "seed", "") or "–"))]
        )
    more = f'<p class="hint">{words("queue_more", count=len(requests) - MOST_SHOWN)}</p>' if len(requests) > MOST_SHOWN else ""
    return note(words("batch_cost", count=len(requests), time=cost)) + table([words("prompt"), words("seed")], rows) + more
