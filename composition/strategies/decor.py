"""DECOR (Jang et al. 2024, arXiv 2412.09169): all adapters at once, with unwanted directions taken out of the text.

An adapter's text draws more than its words say: what its few pictures had in common leaks into their tokens. DECOR projects the
prompt's features away from those of undesired words, X' = X − αXP. `undesired` names such words for the whole prompt, as the
paper does. Ours on top: with `apart` each entry's words are projected away from the other entries' words, so that one thing's
looks do not sit in the other's tokens; a token that both have ("red cat and grey cat") is no reason to change either. Pooled text
(SDXL) and the negative prompt are left alone. Nothing is trained, and a picture costs what it costs with merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from studio.composition.plan import Share, Text
from studio.composition.scene import Concept, Scene, require_entries
from studio.composition.spans import token_span
from studio.composition.strategy import ConceptRoutes, GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at
from studio.composition.text_projection import directions_of, projected
from studio.pipelines.base_model import TextCondition
from studio.pipelines.denoising import Step
from studio.pipelines.encoding import token_ids


class DecorConfig(StrategyConfig):
    """Settings of `decor`."""

    alpha: Share = Field(default=0.5, description="How much of the unwanted directions is taken out: 0 nothing, 1 all.")
    undesired: Text | None = Field(
        default=None,
        description="Words that shall not show anywhere: what an adapter's pictures had and the prompt does not say.",
    )
    apart: bool = Field(default=True, description="Whether each entry's words lose what points to the other entries' words.")


class Decor(HasConfig[DecorConfig]):
    """Merge with projected text."""

    name: ClassVar[str] = "decor"
    title: ClassVar[str] = "all adapters at once, with unwanted directions taken out of the text (DECOR)"
    uses_regions: ClassVar[bool] = False
    Config = DecorConfig

    def build(self, scene: Scene, config: DecorConfig) -> DecorStrategy:
        """One pass a step."""
        require_entries(scene, self.name)
        return DecorStrategy(scene, config)


class DecorStrategy(GuidedStrategy):
    """One pass. `notes` says where there was nothing to take out."""

    @torch.no_grad()
    def __init__(self, scene: Scene, config: DecorConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.concepts = scene.concepts
        self._routes = ConceptRoutes(masks=False)
        plain = scene.condition(scene.plan.prompt, scene.concepts)
        features = plain.prompt_embeds
        if config.apart:
            features = apart(features, _tokens(scene), config.alpha)
        if config.undesired is not None:
            features = projected(features, directions_of(_rows_of(scene, config.undesired)), config.alpha)
        self.positive = plain if features is plain.prompt_embeds else replace(plain, prompt_embeds=features)
        self._negative = scene.negative(scene.plan.negative_prompt, scene.concepts)
        self._passes: dict[int, Pass] = {}
        self.notes = _notes(scene, self.positive is plain)

    def passes(self, step: Step) -> Sequence[Pass]:
        """One, with all adapters whose time it is."""
        routes = self._routes.of(active_at(self.concepts, self.progress(step)))
        return [self._passes.setdefault(id(routes), Pass(self.positive, self._negative, routes))]


def apart(features: Tensor, tokens: Sequence[dict[int, int]], alpha: float) -> Tensor:
    """The features `[1, T, D]` with each concept's rows projected away from the others'; themselves if nothing is to be done.

    Args:
        tokens: for each concept position -> token id of its words; a token that is also among a concept's own words does not
            count against it.
    """
    changed = features.clone()
    is_changed = False
    for index, own in enumerate(tokens):
        others = [
            position
            for number, other in enumerate(tokens)
            if number != index
            for position, token in other.items()
            if token not in own.values()
        ]
        if own and others:
            changed[0, list(own)] = projected(features[0, list(own)], directions_of(features[0, others]), alpha)
            is_changed = True
    return changed if is_changed else features


def _tokens(scene: Scene) -> list[dict[int, int]]:
    ids = token_ids(scene.base.tokenizers[0], [scene.plan.prompt])[0].tolist()

    def of(concept: Concept) -> dict[int, int]:
        return {} if concept.span is None else {position: ids[position] for position in concept.span.tokens}

    return [of(concept) for concept in scene.concepts]


def _rows_of(scene: Scene, words: str) -> Tensor:
    """X̃: the features of words alone, with all adapters, `[k, D]`."""
    condition: TextCondition = scene.condition(words, scene.concepts)
    span = token_span(scene.base.tokenizers[0], words, (0, len(words)))
    return condition.prompt_embeds[0, list(span.tokens)]


def _notes(scene: Scene, is_plain: bool) -> tuple[str, ...]:
    if not is_plain or len(scene.concepts) == 1:
        return ()
    said = "decor found nothing to take out of the text, and is merge here"
    return (f"{said}: give entries words of the prompt, or say what is undesired.",)
