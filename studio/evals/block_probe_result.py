"""From the probe's records to its finding: what each stack decides, the best pair, and whether it beats random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import numpy as np

from studio.evals.records import Record
from studio.evals.statistics import Interval, bootstrap_interval, paired_difference
from studio.evals.tables import Cell, Table
from studio.pipelines.block_roles import BlockProbe
from studio.pipelines.errors import UserError

MOST_RANDOM_PAIRS_AS_GOOD = 1
"""Of twenty random pairs so many may do as well as the best one."""

StackPair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class SingleEffect:
    """How far content and style go over to the prompt that one stack reads: 0 not at all, 1 as if all of the model read it."""

    stack: str
    content: Interval
    style: Interval


@dataclass(frozen=True, kw_only=True)
class PairEffect:
    """What a pair of stacks does: 1 if the content is wholly that of the one's prompt and the style of the other's.

    Attributes:
        content, style: the two halves, each -1 (the wrong way round) to 1, 0 for neither prompt. separation: their mean.
        per_prompt: the separation for each prompt pair.
    """

    content_stack: str
    style_stack: str
    content: Interval
    style: Interval
    separation: Interval
    per_prompt: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The finding.

    Attributes:
        singles: each stack alone. candidates: pairs the best was chosen from, best first, on the choosing prompts.
        best, controls: the chosen pair and random ones, on prompts of their own.
        advantage: of the best over the mean of the random pairs, prompt by prompt.
        num_as_good: random pairs that do as well as the best or better.
    """

    singles: tuple[SingleEffect, ...]
    candidates: tuple[PairEffect, ...]
    best: PairEffect
    controls: tuple[PairEffect, ...]
    advantage: Interval
    num_as_good: int

    @property
    def separates(self) -> bool:
        """Better than the random pairs by interval and by rank, and both halves show by themselves."""
        return (
            self.advantage.low > 0.0
            and self.num_as_good <= MOST_RANDOM_PAIRS_AS_GOOD
            and self.best.content.low > 0.0
            and self.best.style.low > 0.0
        )

    @property
    def sentence(self) -> str:
        """The finding in words."""
        verdict = "separates content from style" if self.separates else "no separation beyond that of random pairs"
        mean = float(np.mean([effect.separation.estimate for effect in self.controls]))
        return (
            f"Best pair: content {self.best.content_stack}, style {self.best.style_stack}; {verdict}: "
            f"{self.best.separation} against {mean:.3f} for {len(self.controls)} random pairs, of which {self.num_as_good} "
            "do as well."
        )

    def record(self, base_hash: str) -> BlockProbe:
        """What ships with the base model."""
        return BlockProbe(
            base_hash=base_hash,
            content_block=self.best.content_stack,
            style_block=self.best.style_stack,
            separates=self.separates,
            sentence=self.sentence,
        )

    def details(self) -> dict[str, Any]:
        """All figures, as JSON values."""
        return {
            "separation": asdict(self.best.separation),
            "content": asdict(self.best.content),
            "style": asdict(self.best.style),
            "advantage": asdict(self.advantage),
            "random_pairs_as_good": self.num_as_good,
            "singles": [asdict(effect) for effect in self.singles],
            "random_pairs": [
                {
                    "content_block": effect.content_stack,
                    "style_block": effect.style_stack,
                    "separation": round(effect.separation.estimate, 4),
                }
                for effect in self.controls
            ],
        }


def most_promising(records: Sequence[Record], stacks: Sequence[str], num: int) -> list[StackPair]:
    """The pairs that the single stacks promise most of: the one moves content and not style, the other style and not content."""
    spans = _spans(records)
    effect = {stack: _single(records, stack, spans) for stack in stacks}

    def promise(pair: StackPair) -> float:
        content, style = (effect[stack] for stack in pair)
        return content.content.estimate - content.style.estimate + style.style.estimate - style.content.estimate

    return sorted(permutations(stacks, 2), key=promise, reverse=True)[:num]


def best_of(records: Sequence[Record], candidates: Sequence[StackPair]) -> StackPair:
    """The pair that separates best on the choosing prompts."""
    spans = _spans(records)
    return max(candidates, key=lambda pair: _pair(records, "choose", pair, spans).separation.estimate)


def fold(
    records: Sequence[Record],
    stacks: Sequence[str],
    candidates: Sequence[StackPair],
    best: StackPair,
    controls: Sequence[StackPair],
) -> ProbeResult:
    """All figures from the raw records."""
    spans = _spans(records)
    chosen = _pair(records, "confirm", best, spans)
    others = tuple(_pair(records, "confirm", pair, spans) for pair in controls)
    random_mean = np.mean([effect.per_prompt for effect in others], axis=0)
    tried = [_pair(records, "choose", pair, spans) for pair in candidates]
    return ProbeResult(
        singles=tuple(_single(records, stack, spans) for stack in stacks),
        candidates=tuple(sorted(tried, key=lambda effect: -effect.separation.estimate)),
        best=chosen,
        controls=others,
        advantage=paired_difference(chosen.per_prompt, random_mean.tolist()),
        num_as_good=sum(effect.separation.estimate >= chosen.separation.estimate for effect in others),
    )


def probe_tables(result: ProbeResult) -> tuple[Table, Table]:
    """Singles, and pairs."""
    singles = Table(
        "What one attention stack decides: share of the way to the prompt that it alone reads",
        ("stack", "content", "style"),
        tuple((effect.stack, effect.content, effect.style) for effect in result.singles),
        (f"n = {result.singles[0].content.num} prompt pairs; 95 % bootstrap intervals. 0: nothing, 1: as if all stacks read it",),
    )
    rows: list[tuple[Cell, ...]] = [("best", *_cells(result.best))]
    rows += [(f"random {number}", *_cells(effect)) for number, effect in enumerate(result.controls, start=1)]
    rows += [(f"candidate {number}", *_cells(effect)) for number, effect in enumerate(result.candidates, start=1)]
    pairs = Table(
        "Pairs of stacks: the one reads content words, the other style words, the rest 'a picture'",
        ("pair", "content stack", "style stack", "content", "style", "separation"),
        tuple(rows),
        (
            f"best and random: the same {result.best.separation.num} fresh prompt pairs; candidates: those they were chosen by",
            f"advantage over the mean random pair {result.advantage}; random pairs that do as well: {result.num_as_good}",
            result.sentence,
        ),
    )
    return singles, pairs


def _cells(effect: PairEffect) -> tuple[Cell, ...]:
    return (effect.content_stack, effect.style_stack, effect.content, effect.style, effect.separation)


def _spans(records: Sequence[Record]) -> Mapping[str, tuple[float, float]]:
    """ "content" and "style" -> mean lean with the second prompt everywhere, and with the first: the ends of the scale.

    Raises:
        UserError: the two do not surely differ.
    """
    ends = {}
    for what in ("content", "style"):
        leans = {
            which: [float(record[f"{what}_lean"]) for record in records if record["phase"] == "everywhere" and _is(record, which)]
            for which in ("second", "first")
        }
        low, high = (float(np.mean(leans[which])) for which in ("second", "first"))
        difference = paired_difference(leans["first"], leans["second"])
        if not difference.low > 0.0:
            raise UserError(
                f"The base model's pictures do not follow the {what} of the prompts (difference by the scorer: {difference}), "
                "so there is nothing to separate. Use a larger --budget, another --scorer, or a better base model."
            )
        ends[what] = (low, high)
    return ends


def _is(record: Record, which: str) -> bool:
    return bool(record["rest"] == record[which])


def _single(records: Sequence[Record], stack: str, spans: Mapping[str, tuple[float, float]]) -> SingleEffect:
    chosen = [record for record in records if record["phase"] == "single" and record["content_stack"] == stack]
    ways = {
        what: bootstrap_interval([(float(record[f"{what}_lean"]) - low) / (high - low) for record in chosen])
        for what, (low, high) in spans.items()
    }
    return SingleEffect(stack=stack, content=ways["content"], style=ways["style"])


def _pair(records: Sequence[Record], phase: str, pair: StackPair, spans: Mapping[str, tuple[float, float]]) -> PairEffect:
    """Neither prompt is at home here, so 0 is the middle of the scale; the style stack read the second prompt."""
    chosen = [
        record for record in records if record["phase"] == phase and (record["content_stack"], record["style_stack"]) == pair
    ]
    signs = {"content": 1.0, "style": -1.0}
    ways = {
        what: [signs[what] * 2 * (float(record[f"{what}_lean"]) - (low + high) / 2) / (high - low) for record in chosen]
        for what, (low, high) in spans.items()
    }
    both = [(content + style) / 2 for content, style in zip(ways["content"], ways["style"], strict=True)]
    return PairEffect(
        content_stack=pair[0],
        style_stack=pair[1],
        content=bootstrap_interval(ways["content"]),
        style=bootstrap_interval(ways["style"]),
        separation=bootstrap_interval(both),
        per_prompt=tuple(both),
    )
