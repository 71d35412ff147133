"""The bars that compositions are held to, and where the judge's ranking is not that of the papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from studio.evals.composition_outcomes import Outcomes, best_elsewhere, difference_of, gap_closed
from studio.evals.composition_plan import DIFFERENT, FOUR, PAIRS, SAME, THREE
from studio.evals.composition_ways import (
    ALONE,
    BASE,
    BOXES,
    CMLORA,
    COMPOSITE,
    LORA_COMPOSER,
    NO_ADAPTERS,
    SWAPPED,
    TRUTH,
)
from studio.evals.statistics import Interval, bootstrap_ratio, share_interval
from studio.evals.tables import Table
from studio.evals.trainers_claims import FAILED, HELD, OPEN, above

GAP_CLOSED, MOST_BARE, MOST_LOST = 1 / 3, 0.10, 0.06
FLOOR = 0.10
"""Share of pictures from which "not worse" says something: two ways that never succeed are no worse than each other."""

IN_BOXES = {"two": 0.8, "four": 0.6}
CMLORA_FLOPS = {2: 0.72, 3: 0.62, 4: 0.58}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar, what was measured, and whether it is met. `figure` is what the verdict rests on."""

    text: str
    aim: str
    figure: Interval | float | str
    verdict: str


def bars(outcomes: Outcomes, merge: str, box_free: Sequence[str]) -> list[Bar]:
    """Every bar that the records can speak to.

    Args:
        merge: the way of the plain merge at its best strength. box_free: ways without boxes, the controls not among them.
    """
    return [
        *_controls(outcomes, merge),
        *_gap(outcomes, merge, box_free),
        *_in_boxes(outcomes),
        *_cmlora(outcomes),
    ]


def bars_table(found: Sequence[Bar]) -> Table:
    """The bars as a table."""
    return Table(
        title="Bars",
        columns=("bar", "aim", "measured", "verdict"),
        rows=tuple((bar.text, bar.aim, bar.figure, bar.verdict) for bar in found),
        notes=(
            "the best strategy is chosen, for each prompt, on all other prompts; intervals are bootstraps over prompts",
            "a bar on a share is a bar on the estimate; a difference has to lie above 0 with its interval. Where the gap's",
            f"interval holds 0, or composite has fewer than {FLOOR:.2f} right, nothing is said",
        ),
    )


def _met(holds: bool) -> str:
    return HELD if holds else FAILED


def _controls(outcomes: Outcomes, merge: str) -> Iterator[Bar]:
    for name, groups in (("two", PAIRS), ("three", (THREE,)), ("four", (FOUR,))):
        bare = [bool(r["right"]) for r in outcomes.of(BASE.name, groups)]
        if bare:
            figure = share_interval(bare)
            yield Bar(
                text=f"base with class words, {name} things",
                aim="<= .10",
                figure=figure,
                verdict=_met(figure.estimate <= MOST_BARE),
            )
    for way in dict.fromkeys(str(r["way"]) for r in outcomes.records if str(r.get("way", "")).endswith(SWAPPED)):
        original = way.removesuffix(SWAPPED)
        if outcomes.of(original):
            fall = outcomes.difference(original, way)
            yield Bar(text=f"{original}: falls when adapters are swapped", aim="> 0", figure=fall, verdict=above(fall))
    truth = [bool(r["right"]) for r in outcomes.of(TRUTH)]
    if truth:
        yield Bar(text="rendered truth (the most that the judge can see)", aim="", figure=share_interval(truth), verdict="")


def _gap(outcomes: Outcomes, merge: str, box_free: Sequence[str]) -> Iterator[Bar]:
    floor, ceiling = outcomes.values(merge, "right"), outcomes.values(ALONE, "right")
    others = [name for name in box_free if name != merge and outcomes.of(name)]
    if not floor or not ceiling or not others:
        return
    ours, chosen = best_elsewhere(outcomes, others)
    names = ", ".join(sorted(set(chosen.values())))
    difference, closed = difference_of(ours, floor), gap_closed(ours, floor, ceiling)
    gap = difference_of(ceiling, floor)
    yield Bar(text=f"gap: each alone - {merge}", aim="", figure=gap, verdict="")
    yield Bar(text=f"best without boxes ({names}) - {merge}", aim="> 0", figure=difference, verdict=above(difference))
    holds = closed.num > 0 and closed.estimate >= GAP_CLOSED
    yield Bar(text="share of the gap that it closes", aim=">= 1/3", figure=closed, verdict=_met(holds) if gap.low > 0 else OPEN)


def _in_boxes(outcomes: Outcomes) -> Iterator[Bar]:
    way = LORA_COMPOSER + BOXES
    for name, groups in (("two", (DIFFERENT, SAME)), ("four", (FOUR,))):
        ours = outcomes.values(way, "right", groups)
        classes = outcomes.values(way + NO_ADAPTERS, "classes_in_place", groups)
        cells = [cell for cell in ours if cell in classes]
        if not cells:
            continue
        ratio = bootstrap_ratio([ours[c] for c in cells], [classes[c] for c in cells], [c[0] for c in cells])
        aim = IN_BOXES[name]
        share = sum(classes[c] for c in cells) / len(cells)
        text = f"LoRA-Composer, {name} things in boxes: all right / classes that the base alone puts there ({share:.2f})"
        yield Bar(text=text, aim=f">= {aim:g}", figure=ratio, verdict=_met(ratio.estimate >= aim) if ratio.num else OPEN)


def _cmlora(outcomes: Outcomes) -> Iterator[Bar]:
    for count, aim in CMLORA_FLOPS.items():
        ours, theirs = outcomes.flops(CMLORA, count), outcomes.flops(COMPOSITE, count)
        if ours is not None and theirs:
            ratio = ours / theirs
            yield Bar(
                text=f"CMLoRA's FLOPs / composite's, {count} adapters",
                aim=f"<= {aim:g}",
                figure=ratio,
                verdict=_met(ratio <= aim),
            )
    if outcomes.of(CMLORA) and outcomes.of(COMPOSITE):
        change = outcomes.difference(CMLORA, COMPOSITE)
        yield Bar(
            text="CMLoRA - composite, all right (lower end of the interval)",
            aim="> -.06",
            figure=change,
            verdict=_met(change.low > -MOST_LOST) if outcomes.mean(COMPOSITE) >= FLOOR else OPEN,
        )


RANKINGS: tuple[tuple[str, str, str], ...] = (
    ("switch", "merge", "LoRA Switch / Composite"),
    (COMPOSITE, "merge", "LoRA Switch / Composite"),
    ("weighted-switch", "switch", "W-Switch"),
    (CMLORA, COMPOSITE, "CMLoRA"),
    (CMLORA, "switch", "CMLoRA"),
    ("switch", CMLORA, "LoRAtorio, W-Switch"),
    ("loratorio", "switch", "LoRAtorio"),
    ("loratorio", COMPOSITE, "LoRAtorio"),
    ("clora", "merge", "CLoRA"),
    ("clora", COMPOSITE, "CLoRA"),
    ("clora", "switch", "CLoRA"),
    (LORA_COMPOSER + BOXES, "regional" + BOXES, "LoRA-Composer (its attention without its losses)"),
    ("ziplora", "merge", "ZipLoRA"),
    ("k-lora", "ziplora", "K-LoRA"),
    ("merge, regression", "merge", "Mix-of-Show"),
    ("merge", "merge, ties", "SSR-Merge (concepts found)"),
    ("merge, ties", "merge, dare", "SSR-Merge (concepts found)"),
)
"""(better, worse, by whom), as published. Those that contradict each other stand here both."""

SUBJECT_AND_STYLE = frozenset({"ziplora", "k-lora", "b-lora", "decor"})
"""Made for a subject and a style: their papers' rankings are asked of the prompts with a style alone."""


def rankings_table(outcomes: Outcomes, merge: str, style_group: str) -> Table:
    """What papers say is better, and what the judge says."""
    rows = []
    for better, worse, source in RANKINGS:
        first, second = (merge if name == "merge" else name for name in (better, worse))
        groups = [style_group] if {better, worse} & SUBJECT_AND_STYLE else PAIRS
        right = outcomes.difference(first, second, "right", groups)
        if right.num == 0:
            continue
        things = outcomes.difference(first, second, "things_right", groups)
        rows.append((f"{better} above {worse}", source, right, things, ranked(right)))
    return Table(
        title="Rankings of the papers, and the judge's",
        columns=("claim", "published by", "all right", "things right", "verdict"),
        rows=tuple(rows),
        notes=(f"paired differences, 95 % intervals over prompts; merge is {merge}. {FAILED}: the judge says the opposite",),
    )


def ranked(difference: Interval) -> str:
    """A verdict on a difference; `OPEN` also where the two draw exactly alike."""
    return OPEN if difference.low == difference.high == 0.0 else above(difference)
