"""The demo's page: photos, the new pictures beside the base model's and the truth, the curves and the scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from studio.evals.concept import ConceptVerdict
from studio.training.report.chart import Series, line_chart
from studio.training.report.style import PAGE_STYLE
from studio.training.selection import CheckpointScore

EXTRA_STYLE = """
.eight{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:18px}
.eight .seeds{display:grid;grid-template-columns:1fr 1fr;gap:4px}.eight img{width:100%;display:block;border-radius:7px;
image-rendering:pixelated}.eight .others{display:grid;grid-template-columns:1fr 1fr;gap:4px;margin-top:4px;font-size:11px;
color:var(--muted)}
.scores{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}.scores th,.scores td{padding:7px 12px 7px 0;
text-align:left;border-top:1px solid var(--line)}.yes{color:#19a979;font-weight:600}.no{color:#e8743b;font-weight:600}
"""


@dataclass(frozen=True, kw_only=True)
class DemoFacts:
    """Everything on the page. Pictures lie in `pictures/` as photo-I.png and ARM-PROMPT-SEED.png."""

    trigger: str
    class_name: str
    prompts: tuple[str, ...]
    num_photos: int
    num_seeds: int
    verdict: ConceptVerdict
    adapter: str
    reason: str
    base_score: CheckpointScore | None
    scores: tuple[CheckpointScore, ...]
    chosen_step: int
    seconds: dict[str, tuple[float, float]]


def demo_page(facts: DemoFacts) -> str:
    """The page as HTML; it needs nothing from the network."""
    style = PAGE_STYLE + EXTRA_STYLE
    body = "\n".join((_header(facts), _photos(facts), _scenes_card(facts), _scores_card(facts), _choice(facts), _next(facts)))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{escape(facts.trigger)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _header(facts: DemoFacts) -> str:
    what = f"A {escape(facts.class_name)} that the base model had never seen, learned from {facts.num_photos} photos."
    return f"<header><h1>{escape(facts.trigger)}</h1><p class='subtitle'>{what}</p>{_seconds(facts)}</header>"


def _scenes_card(facts: DemoFacts) -> str:
    scenes = "".join(_scenes(facts))
    return f"<section class='card'><h2>In new scenes and styles</h2><div class='eight'>{scenes}</div></section>"


def _scores_card(facts: DemoFacts) -> str:
    return f"<section class='card'><h2>What the judge says</h2>{_scores(facts)}</section>"


def _choice(facts: DemoFacts) -> str:
    more = "<p class='note'>All about the training: <a href='run/index.html'>run/index.html</a></p>"
    head = f"<h2>The chosen checkpoint</h2><p>{escape(facts.reason)}</p>"
    return f"<section class='card choice'>{head}{_curves(facts)}{more}</section>"


def _next(facts: DemoFacts) -> str:
    prompt = f"a {facts.trigger} next to a blue house"
    command = f'studio generate --adapter outputs/demo/{facts.adapter} --prompt "{prompt}" --num-images 4'
    return f"<section class='card'><h2>Go on</h2><pre>{escape(command)}</pre></section>"


def _seconds(facts: DemoFacts) -> str:
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{wall:.0f} s ({cpu:.0f} s of CPU)</dd></div>"
        for name, (wall, cpu) in facts.seconds.items()
    )
    return f"<dl class='strip'>{cells}</dl>"


def _photos(facts: DemoFacts) -> str:
    figures = "".join(f"<figure><img src='pictures/photo-{i}.png' alt='photo {i + 1}'></figure>" for i in range(facts.num_photos))
    return f"<section class='card'><h2>The photos</h2><div class='pictures large'>{figures}</div></section>"


def _scenes(facts: DemoFacts) -> Iterator[str]:
    for i, prompt in enumerate(facts.prompts):
        seeds = "".join(f"<img src='pictures/ours-{i}-{s}.png' alt='{escape(prompt)}, seed {s}'>" for s in range(facts.num_seeds))
        yield (
            f"<figure><div class='seeds'>{seeds}</div><div class='others'><div><img src='pictures/base-{i}-0.png' alt='base'>"
            f"the base model</div><div><img src='pictures/truth-{i}-0.png' alt='truth'>as it truly looks</div></div>"
            f"<figcaption>{escape(prompt)}</figcaption></figure>"
        )


def _scores(facts: DemoFacts) -> str:
    v = facts.verdict
    rows = (
        ("identity (cosine)", *(f"{v.identity[arm]:.3f}" for arm in ("base", "ours", "truth"))),
        ("says what the prompt says", *(f"{v.fidelity[arm]:.3f}" for arm in ("base", "ours", "truth"))),
        ("the right one of 20 is nearest", *(f"{100 * v.right[arm].estimate:.0f} %" for arm in ("base", "ours", "truth"))),
    )
    table = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    word = "<span class='yes'>learned</span>" if v.learned else "<span class='no'>not fully learned</span>"
    gain = f"{100 * v.identity_gain.estimate:.0f} % [{100 * v.identity_gain.low:.0f}, {100 * v.identity_gain.high:.0f}]"
    head = "<tr><th></th><th>the base model</th><th>with the adapter</th><th>the truth</th></tr>"
    return (
        f"<p>{word}: {gain} of the way from the base model's identity to the truth's.</p>"
        f"<table class='scores'>{head}{table}</table>"
    )


def _curves(facts: DemoFacts) -> str:
    if not facts.scores:
        return ""
    series = [
        Series(name="identity to the held-out photo", points=[(s.step, s.identity) for s in facts.scores], colour=0, dots=True),
        Series(name="prompt fidelity", points=[(s.step, s.prompt_fidelity) for s in facts.scores], colour=1, dots=True),
    ]
    legend = "".join(f"<span class='c{i}'>{escape(line.name)}</span>" for i, line in enumerate(series))
    chart = line_chart(series, x_label="step", title="scores over checkpoints", mark_x=facts.chosen_step, mark_label="chosen")
    return f"{chart}<p class='legend'>{legend}</p>"
