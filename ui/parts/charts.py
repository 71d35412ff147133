"""The curves of a training: loss, smoothed, also on a logarithmic axis; scores over the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from studio.training.report.chart import Series, line_chart, smoothed, thinned
from studio.ui.strings import Words

SMOOTHING = 0.95


def loss_chart(records: Sequence[Mapping[str, Any]], words: Words, *, logarithmic: bool) -> str:
    """Loss over steps; records of metrics.jsonl."""
    instance = [(float(one["step"]), float(one["instance_loss"])) for one in records if one.get("instance_loss") is not None]
    prior = [(float(one["step"]), float(one["prior_loss"])) for one in records if one.get("prior_loss")]
    series = [
        Series(name=words("loss_each"), points=thinned(instance), kind="faint"),
        Series(name=words("loss_concept"), points=thinned(smoothed(instance, SMOOTHING))),
    ]
    names = [(0, words("loss_concept"))]
    if prior:
        series.append(Series(name=words("loss_class"), points=thinned(smoothed(prior, SMOOTHING)), colour=1))
        names.append((1, words("loss_class")))
    title = words("loss_title")
    return line_chart(series, x_label=words("step_word"), title=title, log_y=logarithmic) + legend(names)


def score_chart(scores: Sequence[Mapping[str, Any]], words: Words, chosen_step: int | None) -> str:
    """Likeness and obedience over the checkpoints, with the chosen one marked."""
    keys = (("identity_held_out", 0), ("identity_training", 2), ("prompt_fidelity", 1))
    series, names = [], []
    for key, colour in keys:
        points = [(float(one["step"]), float(one[key])) for one in scores if one.get(key) is not None]
        if points:
            series.append(Series(name=words(f"score_{key}"), points=points, colour=colour, dots=True))
            names.append((colour, words(f"score_{key}")))
    mark = None if chosen_step is None else float(chosen_step)
    chart = line_chart(
        series, x_label=words("step_word"), title=words("scores_title"), mark_x=mark, mark_label=words("chosen_word")
    )
    return chart + legend(names)


def legend(names: Sequence[tuple[int, str]]) -> str:
    """What the colours mean."""
    return f'<p class="legend">{"".join(f"<span class=c{colour}>{escape(name)}</span>" for colour, name in names)}</p>'
