"""B-LoRA (Frenkel et al. 2024, arXiv 2403.14572): the content half of one adapter, the style half of another, in one pass.

What `studio stylize` does, in a plan: an entry with the role style gives its style half, every other one its content half, each
at its own strength (ΔW counts once; the published code multiplies both factors and so acts with the square). The block of a half
reads its entry's own prompt, if it has one, and the rest of the model the plan's (the paper's appendix B). An entry that says
`half` gives that one. An adapter alone, and one that is no B-LoRA because it changes more than the two blocks, acts whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from studio.composition.content_style import content_and_style
from studio.composition.plan import Share
from studio.composition.scene import Concept, Scene, naming, require_entries
from studio.composition.strategy import GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at
from studio.pipelines.adapters import Route
from studio.pipelines.adapters.roles import CONTENT, STYLE, RoleBlocks, role_of, roles_of, select_roles
from studio.pipelines.base_model import BaseModel
from studio.pipelines.block_roles import choose_blocks
from studio.pipelines.denoising import Branch, DenoiseRequest, Step, attention_stacks
from studio.pipelines.errors import UserError


class BLoraConfig(StrategyConfig):
    """Settings of `b-lora`."""

    keep_colours: Share = Field(
        default=0.0,
        description="How much of a content entry's own style half acts too: .4 to .5 for things that are known by their colours.",
    )
    cut: bool = Field(
        default=False,
        description="true: adapters that change more than the two blocks give only what they change there. false: they act "
        "whole.",
    )


class BLora(HasConfig[BLoraConfig]):
    """A content half and a style half."""

    name: ClassVar[str] = "b-lora"
    title: ClassVar[str] = "the content half of one B-LoRA and the style half of another, each block with its own words"
    uses_regions: ClassVar[bool] = False
    Config = BLoraConfig

    def build(self, scene: Scene, config: BLoraConfig) -> BLoraStrategy:
        """One pass a step."""
        require_entries(scene, self.name)
        return BLoraStrategy(scene, config)


@dataclass(frozen=True, eq=False)
class _Half:
    """What of a concept acts.

    Attributes:
        is_whole: whether that is all of it. blocks: those that read the concept's own prompt.
    """

    concept: Concept
    route: Route
    is_whole: bool
    blocks: tuple[str, ...] = ()


class BLoraStrategy(GuidedStrategy):
    """One pass. `notes`: which entry was taken for the style, and which act whole."""

    def __init__(self, scene: Scene, config: BLoraConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        sides = content_and_style(scene.concepts, BLora.name)
        blocks, notes = _blocks_of(scene.base)
        notes += sides.notes
        self.halves: list[_Half] = []
        for concept in scene.concepts:
            with naming(concept.title):
                self.halves += _halves(concept, sides.is_style(concept), blocks, config, alone=len(scene.concepts) == 1)
        whole = [half.concept for half in self.halves if half.is_whole]
        if len(scene.concepts) > 1:
            notes += [_acts_whole(concept) for concept in whole]
        self.notes = tuple(notes)
        self._positive = scene.condition(scene.plan.prompt, whole)
        self._negative = scene.negative(scene.plan.negative_prompt, whole)
        texts = _stack_texts(scene.base, self.halves, [half.concept.entry.prompt for half in self.halves])
        self._prompts = {stack: scene.condition(text, whole) for stack, text in texts.items()}
        texts = _stack_texts(scene.base, self.halves, [half.concept.entry.negative_prompt for half in self.halves])
        self._negatives = {stack: scene.negative(text, whole) for stack, text in texts.items()}
        self._routes: dict[tuple[int, ...], tuple[Route, ...]] = {}
        self._made: dict[int, list[Branch]] = {}

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Forget the branches of the batch before."""
        self._made.clear()
        return super().prepare(request, latents)

    def passes(self, step: Step) -> Sequence[Pass]:
        """One, with the halves whose time it is."""
        active = {id(concept) for concept in active_at([half.concept for half in self.halves], self.progress(step))}
        key = tuple(index for index, half in enumerate(self.halves) if id(half.concept) in active)
        routes = self._routes.setdefault(key, tuple(self.halves[index].route for index in key))
        return [Pass(self._positive, self._negative, routes)]

    def branches(self, step: Step) -> Sequence[Branch]:
        """Without and with the prompt, each block with its own words; the same objects at every step."""
        (only,) = self.passes(step)
        if id(only.routes) not in self._made:
            rows = [0] * self._batch
            halves = [(self._positive, self._prompts)]
            halves = [(self._negative, self._negatives), *halves] if self.is_guided else halves
            self._made[id(only.routes)] = [
                Branch(text.rows(rows), only.routes, {stack: own.rows(rows) for stack, own in texts.items()})
                for text, texts in halves
            ]
        return self._made[id(only.routes)]


def _blocks_of(base: BaseModel) -> tuple[RoleBlocks, list[str]]:
    """Where halves sit if their files do not say so; nowhere is fine as long as they do. And what is to be noted."""
    try:
        chosen = choose_blocks(base)
    except UserError:
        return {}, []
    if chosen.probe is None or chosen.probe.separates:
        return chosen.blocks, []
    return chosen.blocks, [f"The probe of this base model found no separation of content and style ({chosen.probe.sentence})"]


def _halves(concept: Concept, is_style: bool, blocks: RoleBlocks, config: BLoraConfig, *, alone: bool) -> list[_Half]:
    adapter, strength = concept.adapter, concept.strength
    role = STYLE if is_style else CONTENT
    known = roles_of(adapter, blocks)
    if concept.entry.half is not None:  # the scene has cut it out already
        return [_Half(concept, Route(adapter, strength), False, tuple(known.get(concept.entry.half, ())))]
    is_b_lora = all(role_of(path, known) is not None for path in adapter.patches) if known else False
    if alone or not (is_b_lora or config.cut):
        return [_Half(concept, Route(adapter, strength), True, tuple(known[role]) if is_b_lora and role in known else ())]
    found = [_Half(concept, Route(select_roles(adapter, [role], blocks), strength), False, tuple(known[role]))]
    if config.keep_colours > 0 and not is_style:
        colours = Route(select_roles(adapter, [STYLE], blocks), strength * config.keep_colours)
        found.append(_Half(concept, colours, False))
    return found


def _acts_whole(concept: Concept) -> str:
    return (
        f"{concept.title} is no B-LoRA: it changes more than a content and a style block, and acts whole. With cut: true only "
        "what it changes there acts."
    )


def _stack_texts(base: BaseModel, halves: Sequence[_Half], texts: Sequence[str | None]) -> dict[str, str]:
    """Attention stack -> the text that it reads instead of the plan's.

    Args:
        texts: of the halves' entries; None where there is none.
    """
    stacks = attention_stacks(base.unet)
    found: dict[str, tuple[str, Concept]] = {}
    given: dict[int, tuple[_Half, str]] = {}
    for half, own in zip(halves, texts, strict=True):
        if own is not None:
            given.setdefault(id(half.concept), (half, own))  # a concept's first half is the one it is there for
    for half, text in given.values():
        if not half.blocks:
            raise UserError(
                f"{half.concept.title} has a prompt of its own and acts whole, so that no block reads it; leave it out."
            )
        for stack in stacks:
            if not any(f"{stack}.".startswith(f"{block}.") for block in half.blocks):
                continue
            other = found.get(stack)
            if other is not None and other[0] != text:
                raise UserError(
                    f"{other[1].title} and {half.concept.title} have prompts of their own for the same block {stack}."
                )
            found[stack] = (text, half.concept)
    return {stack: text for stack, (text, _) in found.items()}
