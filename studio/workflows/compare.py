"""The same plan by every strategy: same seeds, same prompt, a row each, with a score."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from studio.composition.drawing import compile_scene
from studio.composition.scene import Scene
from studio.composition.strategies import STRATEGIES, strategy_named
from studio.pipelines.denoising import Step
from studio.pipelines.errors import UserError
from studio.pipelines.pictures import contact_sheet
from studio.pipelines.scoring import Scorer
from studio.workflows.compose import ComposedPicture, OpenedPlan, compose

BASE_ALONE = "no adapters"
"""The control: the base model with the plan's words."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy's pictures.

    Attributes:
        scores: one per picture, 0 to 1 for the embedded guide; empty without a scorer.
        passes: the denoiser's passes per step and guidance half, at the first step.
        seconds: of the whole row on this machine. refused: why there are no pictures, "" if there are.
    """

    strategy: str
    pictures: tuple[ComposedPicture, ...] = ()
    scores: tuple[float, ...] = ()
    passes: int = 0
    seconds: float = 0.0
    refused: str = ""

    @property
    def score(self) -> float | None:
        """The mean score."""
        return sum(self.scores) / len(self.scores) if self.scores else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, without pictures."""
        return {
            "strategy": self.strategy,
            "score": self.score,
            "scores": list(self.scores),
            "seeds": [picture.record.seed for picture in self.pictures],
            "passes": self.passes,
            "seconds": round(self.seconds, 3),
            "refused": self.refused,
        }


def compare(
    opened: OpenedPlan,
    names: Sequence[str],
    scorer: Scorer | None,
    *,
    batch_size: int = 4,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Row]:
    """A row per strategy, and first one of the base alone. A strategy that cannot draw the plan has a row that says why.

    The plan's own strategy keeps its settings, the others have their defaults.

    Args:
        on_step: called with passes done and passes in all, so that a strategy of many passes counts for what it costs.
    """
    ready: list[tuple[str, OpenedPlan, Any, int]] = []
    refused: dict[str, str] = {}
    for name in [BASE_ALONE, *names]:
        try:
            plan = _bare(opened) if name == BASE_ALONE else _with(opened, name)
            compiled = compile_scene(plan.scene)
        except UserError as error:
            refused[name] = str(error)
            continue
        ready.append((name, plan, compiled, _num_passes(compiled.strategy, plan.scene)))
    batches = -(-len(opened.scene.request.seeds) // batch_size)
    total = sum(passes for *_, passes in ready) * opened.scene.request.steps * batches
    done = 0
    rows: dict[str, Row] = {}
    for name, plan, compiled, passes in ready:

        def count(step: int, _: int, passes: int = passes, before: int = done) -> None:
            if on_step is not None:
                on_step(before + step * passes, total)

        started = time.perf_counter()
        drawn = compose(plan, compiled=compiled, batch_size=batch_size, on_step=count, should_stop=should_stop)
        pictures = tuple(picture for batch in drawn for picture in batch)
        seconds = time.perf_counter() - started
        done += passes * opened.scene.request.steps * batches
        scores = _scores(scorer, pictures, plain_prompt(opened.scene))
        rows[name] = Row(strategy=name, pictures=pictures, scores=scores, passes=passes, seconds=seconds)
    missing = {name: Row(strategy=name, refused=reason) for name, reason in refused.items()}
    return [{**rows, **missing}[name] for name in [BASE_ALONE, *names]]


def strategy_names(text: str) -> list[str]:
    """ "all", or names with commas between; `ConfigError` for one that there is not."""
    if text.strip() == "all":
        return [kind.name for kind in STRATEGIES]
    return [strategy_named(name.strip()).name for name in text.split(",") if name.strip()]


def grid(rows: Sequence[Row], prompt: str) -> Image.Image:
    """All pictures on a sheet: a row per strategy, a column per seed, the score under each picture."""
    shown = [row for row in rows if row.pictures]
    if not shown:
        raise UserError("No strategy could draw this plan: " + " ".join(row.refused for row in rows))
    captions = [
        f"{score:.2f}" if score is not None else "" for row in shown for score in row.scores or [None] * len(row.pictures)
    ]
    return contact_sheet(
        [picture.image for row in shown for picture in row.pictures],
        captions if any(captions) else None,
        columns=len(shown[0].pictures),
        column_labels=[f"seed {picture.record.seed}" for picture in shown[0].pictures],
        row_labels=[row.strategy if row.score is None else f"{row.strategy}: {row.score:.2f}" for row in shown],
        title=prompt,
    )


def plain_prompt(scene: Scene) -> str:
    """The prompt in words that a scorer knows: where an adapter's words do not say what it is, its class noun stands instead."""
    text = scene.plan.prompt
    bound = [concept for concept in scene.concepts if concept.span is not None]
    for concept in sorted(bound, key=lambda each: -(each.span.start if each.span else 0)):
        noun, words, span = concept.adapter.info.class_noun, concept.words, concept.span
        if noun and words and span is not None and noun.lower() not in words.lower():
            text = text[: span.start] + noun + text[span.end :]
    return text


def _with(opened: OpenedPlan, name: str) -> OpenedPlan:
    return opened if name == opened.plan.strategy.name else opened.with_strategy(name)


def _bare(opened: OpenedPlan) -> OpenedPlan:
    """The same plan without its entries."""
    update = {"entries": ()}
    merge = opened.with_strategy("merge")
    plan, recipe = merge.plan.model_copy(update=update), merge.recipe.model_copy(update=update)
    return replace(merge, plan=plan, recipe=recipe, scene=replace(merge.scene, plan=plan, concepts=()), uses=())


def _num_passes(strategy: Any, scene: Scene) -> int:
    first = Step(0, scene.request.steps, torch.tensor(999))
    return len(strategy.passes(first))


def _scores(scorer: Scorer | None, pictures: Sequence[ComposedPicture], prompt: str) -> tuple[float, ...]:
    if scorer is None or not pictures:
        return ()
    found = scorer.prompt_fidelity([picture.image for picture in pictures], [prompt] * len(pictures))
    return tuple(round(float(score), 6) for score in found)
