"""index.html of a run: one page, relative paths, nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from studio.training.report.chart import Series, line_chart, smoothed, thinned
from studio.training.report.style import PAGE_STYLE
from studio.training.selection import CheckpointScore

SMOOTHING = 0.97


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """The sample pictures of one step: relative paths, one per prompt."""

    step: int
    images: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Everything the page shows.

    Attributes:
        title: "ohwx dog". status: "finished", "running", "stopped" … facts: (name, value) for the strip below the title.
        photos: relative paths of the training photos; held_out: of the one kept apart, or None.
        loss: records of metrics.jsonl with "step", "loss", "instance_loss", "prior_loss".
        prompts: column heads of the samples. samples: rows, step 0 = the base model with the class noun alone.
        base_score, scores: empty when there is no scorer. scorer: its name.
        chosen_step: None while the run is under way. reason: in words. warnings, notes: sentences.
        files: (name, what it is for). commands: lines to type. settings: by `section.key`.
    """

    title: str
    subtitle: str
    status: str
    facts: tuple[tuple[str, str], ...]
    photos: tuple[str, ...]
    held_out: str | None
    loss: Sequence[Mapping[str, Any]]
    prompts: tuple[str, ...]
    samples: tuple[SampleRow, ...]
    base_score: CheckpointScore | None
    scores: tuple[CheckpointScore, ...]
    scorer: str | None
    chosen_step: int | None
    reason: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    settings: Mapping[str, Any]


def report_page(facts: ReportFacts) -> str:
    """The whole HTML document."""
    sections = [
        _head(facts),
        _overview(facts),
        _curves(facts),
        _samples(facts),
        _use(facts),
        _settings(facts),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(facts.title)}</title>'
        f"<style>{PAGE_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def loss_chart(loss: Sequence[Mapping[str, Any]]) -> str:
    """The loss over the steps as an SVG element: raw values behind a running mean, both halves where there are two."""
    instance = [(float(record["step"]), float(record["instance_loss"])) for record in loss]
    prior = [(float(record["step"]), float(record["prior_loss"])) for record in loss if record.get("prior_loss")]
    series = [
        Series(name="concept, each step", points=thinned(instance), kind="faint"),
        Series(name="concept", points=thinned(smoothed(instance, SMOOTHING))),
    ]
    if prior:
        series.append(Series(name="class", points=thinned(smoothed(prior, SMOOTHING)), colour=1))
    return line_chart(series, x_label="step", title="Loss")


def _head(facts: ReportFacts) -> str:
    strip = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.facts)
    return (
        f'<header><p class="status {escape(facts.status)}">{escape(facts.status)}</p><h1>{escape(facts.title)}</h1>'
        f'<p class="subtitle">{escape(facts.subtitle)}</p><dl class="strip">{strip}</dl></header>'
    )


def _overview(facts: ReportFacts) -> str:
    photos = "".join(_figure(path, "") for path in facts.photos)
    if facts.held_out is not None:
        photos += _figure(facts.held_out, "held out", "held")
    chosen = next((row for row in facts.samples if row.step == facts.chosen_step), None)
    made = "".join(_figure(path, prompt) for path, prompt in zip(chosen.images, facts.prompts, strict=False)) if chosen else ""
    result = f'<div class="card"><h2>What it learned</h2><div class="pictures large">{made}</div></div>' if made else ""
    words = "".join(f'<p class="warning">{escape(text)}</p>' for text in facts.warnings)
    words += "".join(f'<p class="note">{escape(text)}</p>' for text in facts.notes)
    return (
        f'<section class="two"><div class="card"><h2>The photos</h2><div class="pictures">{photos}</div></div>{result}</section>'
        f'<section class="card choice"><h2>{_choice_title(facts)}</h2><p>{escape(facts.reason)}</p>{words}</section>'
    )


def _choice_title(facts: ReportFacts) -> str:
    return "So far" if facts.chosen_step is None else f"The choice: step {facts.chosen_step}"


def _curves(facts: ReportFacts) -> str:
    cards = [f'<div class="card"><h2>Loss</h2>{loss_chart(facts.loss)}{_legend(_loss_names(facts.loss))}</div>']
    if facts.scores and facts.base_score is not None:
        cards.append(_identity_card(facts, facts.base_score))
        cards.append(_fidelity_card(facts, facts.base_score))
    return f'<section class="charts">{"".join(cards)}</section>'


def _loss_names(loss: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    names = [(0, "concept (running mean over the single steps)")]
    if any(record.get("prior_loss") for record in loss):
        names.append((1, "class (prior preservation)"))
    return names


def _identity_card(facts: ReportFacts, base: CheckpointScore) -> str:
    held_out = [(float(s.step), s.identity_held_out) for s in facts.scores if s.identity_held_out is not None]
    training = [(float(s.step), s.identity_training) for s in facts.scores]
    series, names = [], []
    if held_out:
        series.append(Series(name="to the held-out photo", points=held_out, dots=True))
        names.append((0, "to the held-out photo"))
    series.append(Series(name="to the training photos", points=training, colour=2, dots=True))
    names.append((2, "to the training photos"))
    series.append(Series(name="base model", points=[(0.0, base.identity)], colour=3, kind="reference"))
    names.append((3, "base model without the token"))
    return _score_card("Identity", series, names, facts, "How much the samples look like the photos.")


def _fidelity_card(facts: ReportFacts, base: CheckpointScore) -> str:
    points = [(float(s.step), s.prompt_fidelity) for s in facts.scores]
    series = [
        Series(name="prompt fidelity", points=points, colour=1, dots=True),
        Series(name="base model", points=[(0.0, base.prompt_fidelity)], colour=3, kind="reference"),
    ]
    names = [(1, "prompt fidelity"), (3, "base model without the token")]
    return _score_card("Prompt fidelity", series, names, facts, "How well the samples show what their prompts say.")


def _score_card(title: str, series: Sequence[Series], names: Sequence[tuple[int, str]], facts: ReportFacts, what: str) -> str:
    mark = None if facts.chosen_step is None else float(facts.chosen_step)
    chart = line_chart(series, x_label="step", title=title, mark_x=mark, mark_label="chosen")
    by = f" Scored by {escape(facts.scorer)}." if facts.scorer else ""
    return f'<div class="card"><h2>{title}</h2>{chart}{_legend(names)}<p class="what">{what}{by}</p></div>'


def _legend(names: Sequence[tuple[int, str]]) -> str:
    return "<p class='legend'>" + "".join(f'<span class="c{colour}">{escape(name)}</span>' for colour, name in names) + "</p>"


def _samples(facts: ReportFacts) -> str:
    if not facts.samples:
        return ""
    heads = "".join(f"<th>{escape(prompt)}</th>" for prompt in facts.prompts)
    rows = []
    for row in facts.samples:
        label = "base model, class noun alone" if row.step == 0 else f"step {row.step}"
        chosen = row.step == facts.chosen_step
        label = escape(label) + ("<b>chosen</b>" if chosen else "")
        cells = "".join(f'<td><img loading="lazy" src="{escape(path)}" alt=""></td>' for path in row.images)
        rows.append(f"<tr{' class=chosen' if chosen else ''}><th>{label}</th>{cells}</tr>")
    return (
        '<section class="card"><h2>Samples over the run</h2><p class="what">The same prompts and seeds at each row; '
        "read down a column to watch it learn.</p>"
        f'<div class="scroll"><table class="samples"><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(rows)}'
        "</tbody></table></div></section>"
    )


def _use(facts: ReportFacts) -> str:
    files = "".join(f"<li><code>{escape(name)}</code> {escape(what)}</li>" for name, what in facts.files)
    commands = "\n".join(escape(line) for line in facts.commands)
    return f'<section class="card"><h2>How to use it</h2><pre>{commands}</pre><ul>{files}</ul></section>'


def _settings(facts: ReportFacts) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(_plain(value))}</td></tr>"
        for key, value in facts.settings.items()
        if value is not None
    )
    table = f'<table class="settings">{rows}</table>'
    return f'<section class="card"><details><summary>All settings</summary>{table}</details></section>'


def _plain(value: Any) -> str:
    return " · ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure(path: str, caption: str, kind: str = "") -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><img loading="lazy" src="{escape(path)}" alt="{escape(caption)}">{text}</figure>'
