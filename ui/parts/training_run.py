"""A training as the page shows it: what lies in the run's folder, read without anything heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from studio.jobs.job import Job
from studio.service import Studio, TrainSpec
from studio.ui.parts.charts import loss_chart, score_chart
from studio.ui.parts.html import note
from studio.ui.strings import Words

NUM_COLUMNS = 4
NUM_ROWS = 6


@dataclass(frozen=True)
class RunView:
    """What the folder of a run holds so far."""

    job: Job
    folder: Path
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    prompts: Sequence[str]

    @property
    def samples(self) -> list[tuple[int, list[str]]]:
        """Steps with their pictures' names, oldest first."""
        found = []
        for folder in sorted((self.folder / "samples").glob("step-*")):
            names = sorted(path.name for path in folder.glob("*.png"))
            if names:
                found.append((int(folder.name.removeprefix("step-")), names))
        return found


def run_view(studio: Studio, job: Job) -> RunView:
    """Read a training's folder."""
    handed_in = studio.request(job.id)
    folder = handed_in.output_dir
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    spec = handed_in.spec
    assert isinstance(spec, TrainSpec)
    return RunView(job, folder, record, _lines(folder / "metrics.jsonl"), _prompts(spec))


def digest(view: RunView) -> tuple[object, ...]:
    """Equal as long as nothing that is shown has changed."""
    job = view.job
    return (
        job.id,
        job.state,
        job.held,
        round(job.progress, 3),
        job.message,
        len(view.metrics),
        len(view.samples),
        str(view.record),
    )


def curves(view: RunView, words: Words, *, logarithmic: bool) -> str:
    """Loss, and scores where there are some."""
    if not view.metrics:
        return f'<p class="hint">{escape(words("loss_soon"))}</p>'
    parts = [f"<h3>{escape(words('loss_title'))}</h3>", loss_chart(view.metrics, words, logarithmic=logarithmic)]
    scores = view.record.get("scores") or []
    if len(scores) > 1:
        parts += [f"<h3>{escape(words('scores_title'))}</h3>", score_chart(scores, words, view.record.get("chosen_step"))]
    return "".join(parts)


def verdict(view: RunView, words: Words) -> str:
    """Which checkpoint was chosen and why, and what to beware of."""
    reason = str(view.record.get("reason") or "")
    warnings = view.record.get("warnings") or []
    said = note(f"{words('chosen_step', step=view.record.get('chosen_step'))} {reason}", "good") if reason else ""
    return said + "".join(note(str(text), "warn") for text in warnings)


def sample_rows(view: RunView, words: Words) -> str:
    """The sample pictures, the latest first; the base model's own attempts last."""
    rows = view.samples
    if not rows:
        return f'<p class="hint">{escape(words("samples_soon"))}</p>'
    chosen = view.record.get("chosen_step")
    kept = [*rows[:1], *rows[max(1, len(rows) - NUM_ROWS + 1) :]]
    if chosen is not None and chosen not in [step for step, _ in kept]:
        kept = [kept[0], *[row for row in rows if row[0] == chosen], *kept[2:]]
    captions = "".join(f'<span class="cap">{escape(prompt)}</span>' for prompt in view.prompts[:NUM_COLUMNS])
    lines = [f'<div class="row"><b></b>{captions}</div>']
    for step, names in reversed(kept):
        title = words("step_zero") if step == 0 else words("step_number", step=step)
        mark = f"<br>{escape(words('chosen_word'))}" if step == chosen else ""
        pictures = "".join(
            f'<img class="pic" loading="lazy" alt="{escape(title)}: {escape(prompt)}" '
            f'src="/media/runs/{view.job.id}/step-{step:06d}/{name}">'
            for name, prompt in zip(names, (*view.prompts, *[""] * NUM_COLUMNS), strict=False)
            if names.index(name) < NUM_COLUMNS
        )
        lines.append(f'<div class="row{" chosen" if step == chosen else ""}"><b>{escape(title)}{mark}</b>{pictures}</div>')
    return f'<div class="samples">{"".join(lines)}</div>'


def _prompts(spec: TrainSpec) -> list[str]:
    from studio.training.config import validate

    config = validate(spec.settings)
    words = {"token": config.concept.token, "class_noun": config.concept.class_noun}
    return [prompt.format(**words) for prompt in config.run.sample_prompts]


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
