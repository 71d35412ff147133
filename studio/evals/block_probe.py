"""`studio probe-blocks`: which attention stacks of a base model decide the content of a picture, and which its style."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from studio.evals.block_probe_plan import (
    NEUTRAL,
    ProbeBudget,
    ProbeItem,
    pair_items,
    random_pairs,
    single_items,
)
from studio.evals.block_probe_result import ProbeResult, best_of, fold, most_promising
from studio.evals.records import Record, RecordLog, open_log
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import attention_stacks
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.scoring import Scorer

OnProgress = Callable[[int, int], None]
"""Called with (denoising steps done, of how many)."""


def probe_blocks(
    base: BaseModel,
    scorer: Scorer,
    output: Path,
    budget: ProbeBudget,
    *,
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> ProbeResult:
    """Draw, score and fold. Every picture's scores are in `output/records.jsonl`; a probe that was stopped goes on from there.

    Raises:
        UserError: the base model has fewer than two attention stacks.
    """
    stacks = attention_stacks(base.unet)
    if len(stacks) < 2:
        raise UserError(f"{base.source} has {len(stacks)} attention stacks; content and style need two.")
    header = {
        "what": "block probe 1",
        "base": base.content_hash,
        "scorer": [scorer.name, scorer.content_hash],
        "steps": budget.steps,
        "neutral": NEUTRAL,
    }
    log = open_log(output / "records.jsonl", header)
    artist = _Artist(base, scorer, log, budget, batch_size, on_progress, budget.num_pictures(len(stacks)))
    artist.draw(single_items(stacks, budget))
    candidates = most_promising(log.all(), stacks, budget.num_candidates)
    artist.draw(pair_items("choose", candidates, budget))
    best = best_of(log.all(), candidates)
    controls = random_pairs(stacks, best)
    artist.draw(pair_items("confirm", [best, *controls], budget))
    return fold(log.all(), stacks, candidates, best, controls)


class _Artist:
    """Draws and scores what is not in the log yet."""

    def __init__(
        self,
        base: BaseModel,
        scorer: Scorer,
        log: RecordLog,
        budget: ProbeBudget,
        batch_size: int,
        on_progress: OnProgress | None,
        num_pictures: int,
    ) -> None:
        self.base = base
        self.scorer = scorer
        self.log = log
        self.steps = budget.steps
        self.batch_size = batch_size
        self.on_progress = on_progress
        self.left = num_pictures  # of the whole probe; what was drawn in an earlier session goes off as it is met
        self.drawn = 0

    def draw(self, items: Iterable[ProbeItem]) -> None:
        """Draw the missing ones of `items`, a batch at a time, each batch written before the next."""
        wanted = list(items)
        missing = [item for item in wanted if item.id not in self.log]
        self.left -= len(wanted) - len(missing)
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            self.log.append(self._records(batch))
            self.drawn += len(batch)
            self.left -= len(batch)

    def _records(self, items: list[ProbeItem]) -> list[Record]:
        stacks = dict.fromkeys(stack for item in items for stack in item.stack_prompts)
        request = GenerationRequest(
            prompts=tuple(item.rest for item in items),
            seeds=tuple(item.pair.seed for item in items),
            steps=self.steps,
            block_prompts={stack: tuple(item.stack_prompts.get(stack, item.rest) for item in items) for stack in stacks},
        )
        images = generate(self.base, request, batch_size=len(items), on_step=self._on_step(len(items)))
        scores = {
            name: self.scorer.prompt_fidelity(images, words).tolist()
            for name, words in {
                "first_content": [item.pair.first.content_words for item in items],
                "second_content": [item.pair.second.content_words for item in items],
                "first_style": [item.pair.first.style for item in items],
                "second_style": [item.pair.second.style for item in items],
            }.items()
        }
        return [_record(item, {name: round(values[row], 5) for name, values in scores.items()}) for row, item in enumerate(items)]

    def _on_step(self, num: int) -> Callable[[int, int], None] | None:
        report = self.on_progress
        if report is None:
            return None
        steps = self.steps

        def on_step(done: int, of: int) -> None:
            report(self.drawn * steps + num * done, (self.drawn + self.left) * steps)

        return on_step


def _record(item: ProbeItem, scores: dict[str, float]) -> Record:
    """A picture's scores, and how far they lean to the first prompt in content and to the first in style."""
    return {
        "id": item.id,
        "phase": item.phase,
        "number": item.number,
        "content_stack": item.content_stack,
        "style_stack": item.style_stack,
        "rest": item.rest,
        "told": item.stack_prompts,
        "first": item.pair.first.prompt,
        "second": item.pair.second.prompt,
        "seed": item.pair.seed,
        **scores,
        "content_lean": round(scores["first_content"] - scores["second_content"], 5),
        "style_lean": round(scores["first_style"] - scores["second_style"], 5),
    }
