"""Stylization with B-LoRAs: the content of one picture, the style of another, or either of them with words.

A plan is made from the adapters and the wishes, without drawing anything: which halves act how strongly, with which prompt,
and with which prompt in which block. Frenkel et al. (2024) show three uses: content and style from pictures ("A [c] in [s]
style"), content from a picture and the style in words ("A [c] made of gold"), style from a picture and the content in words
("A backpack in [s] style").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from studio.pipelines.adapters import Adapter, Route
from studio.pipelines.adapters.roles import CONTENT, STYLE, RoleBlocks, family_roles, roles_of, select_roles
from studio.pipelines.base_model import BaseModel
from studio.pipelines.block_roles import ChosenBlocks, choose_blocks
from studio.pipelines.errors import UserError

KEEP_COLOURS_STRENGTH = 0.45
"""Of the content picture's own style half: the paper's .4 to .5, for things that are known by their colours."""


@dataclass(frozen=True, kw_only=True)
class StylizeWishes:
    """What a person asks for.

    Attributes:
        content, style: adapters with halves; one of them may be missing.
        content_strength, style_strength: 1 is as trained; 1.1 makes a style stronger.
        keep_colours: let the content picture's own style half act at `KEEP_COLOURS_STRENGTH` too.
        prompt: None for "a <content> in <style> style", which needs both.
        content_prompt, style_prompt: what the content and the style block read instead of the prompt.
        content_block, style_block: where halves sit, for files that do not say so.
    """

    content: Adapter | None = None
    style: Adapter | None = None
    content_strength: float = 1.0
    style_strength: float = 1.0
    keep_colours: bool = False
    prompt: str | None = None
    content_prompt: str | None = None
    style_prompt: str | None = None
    content_block: str | None = None
    style_block: str | None = None


@dataclass(frozen=True, kw_only=True)
class HalfInUse:
    """One half that acts: of which of the two adapters, which role, how strongly."""

    of: Literal["content", "style"]
    role: str
    route: Route

    @property
    def strength(self) -> float:
        """The half's strength."""
        return float(self.route.strength)


@dataclass(frozen=True, kw_only=True)
class StylizePlan:
    """What to draw. `block_prompts`: attention stack -> prompt. `notes`: what a person should know, a sentence each."""

    prompt: str
    halves: tuple[HalfInUse, ...]
    block_prompts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def routes(self) -> list[Route]:
        """The halves, as the generator takes them."""
        return [half.route for half in self.halves]


def plan_stylize(base: BaseModel, wishes: StylizeWishes) -> StylizePlan:
    """Turn wishes into halves, prompts and notes.

    Raises:
        UserError: there is nothing to stylize with, no prompt, or it is not known where the halves sit.
        AdapterMismatchError: an adapter lacks the half that is asked for.
    """
    content, style = wishes.content, wishes.style
    if content is None and style is None:
        raise UserError("Give a B-LoRA for the content, for the style, or for both: --content FILE, --style FILE.")
    if wishes.keep_colours and content is None:
        raise UserError("--keep-colours keeps those of the content picture: it needs --content.")
    chosen = _chosen_blocks(base, wishes)
    blocks = None if chosen is None else chosen.blocks
    halves: list[HalfInUse] = []
    if content is not None:
        halves.append(_half("content", content, CONTENT, wishes.content_strength, blocks))
        if wishes.keep_colours:
            halves.append(_half("content", content, STYLE, KEEP_COLOURS_STRENGTH, blocks))
    if style is not None:
        halves.append(_half("style", style, STYLE, wishes.style_strength, blocks))
    return StylizePlan(
        prompt=_prompt(wishes),
        halves=tuple(half for half in halves if half.strength != 0.0),
        block_prompts=_block_prompts(wishes, halves, blocks),
        notes=tuple(_notes(wishes, chosen)),
    )


def default_prompt(content: Adapter, style: Adapter) -> str:
    """The paper's words for two pictures: "a [c] in [s] style"."""
    first, second = (adapter.info.trigger or "picture" for adapter in (content, style))
    return f"a {first} in {second} style"


def _chosen_blocks(base: BaseModel, wishes: StylizeWishes) -> ChosenBlocks | None:
    """What is known of the base; None is fine as long as the files say where their halves sit."""
    try:
        return choose_blocks(base, wishes.content_block, wishes.style_block)
    except UserError:
        adapters = [adapter for adapter in (wishes.content, wishes.style) if adapter is not None]
        if wishes.content_block or wishes.style_block or not all(roles_of(adapter) for adapter in adapters):
            raise
        return None


def _half(of: Literal["content", "style"], adapter: Adapter, role: str, strength: float, blocks: RoleBlocks | None) -> HalfInUse:
    return HalfInUse(of=of, role=role, route=Route(select_roles(adapter, [role], blocks), strength))


def _prompt(wishes: StylizeWishes) -> str:
    if wishes.prompt is not None:
        return wishes.prompt
    if wishes.content is not None and wishes.style is not None:
        return default_prompt(wishes.content, wishes.style)
    if wishes.content is not None:
        raise UserError(
            'Say in words how it shall be drawn: --prompt "a ohwx made of gold", with the adapter\'s own word for ohwx.'
        )
    raise UserError('Say in words what shall be drawn: --prompt "a backpack in zwx style", with the adapter\'s own word for zwx.')


def _block_prompts(wishes: StylizeWishes, halves: list[HalfInUse], blocks: RoleBlocks | None) -> dict[str, str]:
    """Each half's own block reads the prompt that was given for its role; without a half, the base's block does."""
    texts: dict[str, str] = {}
    for role, text in ((CONTENT, wishes.content_prompt), (STYLE, wishes.style_prompt)):
        if text is None:
            continue
        sits = [half.route.adapter.info.role_blocks for half in halves if half.role == role]
        known = sits[-1] if sits else (blocks or {})
        if role not in known:
            raise UserError(f"It is not known which block the {role} prompt goes to: name it with --{role}-block.")
        texts |= dict.fromkeys(known[role], text)
    return texts


def _notes(wishes: StylizeWishes, chosen: ChosenBlocks | None) -> list[str]:
    notes = []
    if chosen is not None and chosen.probe is not None and not chosen.probe.separates:
        notes.append(
            f"The probe of this base model found no separation ({chosen.probe.sentence}) "
            "Expect content and style to come along together."
        )
    for adapter in (wishes.content, wishes.style):
        if adapter is not None and not adapter.info.role_blocks and not family_roles(adapter.info.family):
            notes.append(f"{adapter.info.name!r} does not say where its halves sit; the base model's blocks were taken.")
    content, style = wishes.content, wishes.style
    if content is not None and style is not None and content.info.trigger and content.info.trigger == style.info.trigger:
        notes.append(
            f"Both adapters answer to {content.info.trigger!r}; pictures come out cleaner when each was trained with a --token "
            "of its own."
        )
    return notes
