"""A plan together with what it names: the base model, the adapters, the tokens and the masks. Strategies work on this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from studio.composition.plan import ROLES, CompositionPlan, Entry, Role
from studio.composition.plan_checks import plan_problems
from studio.composition.regions import region_masks
from studio.composition.spans import TokenSpan, find_words, overlapping, token_span
from studio.pipelines.adapters import Adapter, Route, patched
from studio.pipelines.adapters.roles import select_roles
from studio.pipelines.base_model import BaseModel, TextCondition, encode_negative, encode_text
from studio.pipelines.errors import AdapterFileError, ConfigError, StudioError, UserError
from studio.pipelines.generation import GenerationRequest, ResolvedRequest, check_adapters, resolve_request


@dataclass(frozen=True, eq=False)
class Concept:
    """One entry of a plan, ready to act.

    Attributes:
        title: how sentences call it. adapter: on the base's device and in its type.
        role: as the plan says, or the file, or "subject".
        words: what it is bound to in the prompt, as it stands there; None if nothing is. span: where.
        mask: where on the canvas it acts, `[H, W]` in 0..1; None for everywhere.
    """

    entry: Entry
    title: str
    adapter: Adapter
    role: Role
    words: str | None
    span: TokenSpan | None
    mask: Tensor | None

    @property
    def strength(self) -> float:
        """How strongly it acts."""
        return self.entry.strength

    def route(self, *, denoiser: bool, mask: bool = True) -> Route | None:
        """Its part in the denoiser, or its part in the text encoders (which know no places); None if it has none there."""
        patches = {path: patch for path, patch in self.adapter.patches.items() if (path.component == "unet") == denoiser}
        part = replace(self.adapter, patches=patches)
        return Route(part, self.strength, mask=self.mask if denoiser and mask else None) if patches else None


@dataclass(frozen=True, eq=False)
class Scene:
    """A plan on a base model. `notes`: what a person should know, a sentence each."""

    plan: CompositionPlan
    base: BaseModel
    request: ResolvedRequest
    concepts: tuple[Concept, ...]
    notes: tuple[str, ...] = ()

    @torch.no_grad()
    def condition(self, prompt: str, concepts: Iterable[Concept] = ()) -> TextCondition:
        """The features of one prompt, one row, as the text encoders make them with these concepts' adapters acting."""
        with patched(self.base.components(), _text_routes(concepts)):
            return encode_text(self.base, [prompt])

    @torch.no_grad()
    def negative(self, prompt: str, concepts: Iterable[Concept] = ()) -> TextCondition:
        """The same for a negative prompt."""
        with patched(self.base.components(), _text_routes(concepts)):
            return encode_negative(self.base, prompt, 1)

    def own_prompt(self, concept: Concept) -> str:
        """What to say where one concept is drawn alone: its own prompt, or else the plan's."""
        return self.plan.prompt if concept.entry.prompt is None else concept.entry.prompt

    def own_negative(self, concept: Concept) -> str:
        """The same for the negative prompt."""
        own = concept.entry.negative_prompt
        return self.plan.negative_prompt if own is None else own


def make_scene(
    plan: CompositionPlan, base: BaseModel, adapters: Sequence[Adapter], find_mask: Callable[[str], Path] = Path
) -> Scene:
    """Join a plan with its adapters (one per entry, in order) and the base model.

    Raises:
        ConfigError: the plan contradicts itself.
        UserError: an adapter is not for this base, is broken or lacks a half, words are past what the text encoder sees, or a
            region does not fit; every sentence names the entry.
    """
    if problems := plan_problems(plan):
        raise ConfigError("\n".join(problems))
    assert len(adapters) == len(plan.entries), f"{len(adapters)} adapters for {len(plan.entries)} entries"
    request = resolve_request(base, generation_request(plan))
    masks = region_masks(plan, request.height, request.width, find_mask)
    places, notes = _places(plan, adapters)
    tokenizer = base.tokenizers[0]
    concepts = []
    for index, (entry, adapter) in enumerate(zip(plan.entries, adapters, strict=True)):
        title = plan.title_of(index)
        place = places[index]
        with naming(title):
            span = None if place is None else token_span(tokenizer, plan.prompt, place)
            ready = _ready(entry, adapter, base)
        words = None if place is None else plan.prompt[slice(*place)]
        concepts.append(Concept(entry, title, ready, _role(entry, adapter), words, span, masks[index]))
    return Scene(plan, base, request, tuple(concepts), tuple(notes))


def generation_request(plan: CompositionPlan) -> GenerationRequest:
    """What the plan asks of any way of drawing."""
    return GenerationRequest(
        prompts=(plan.prompt,) * plan.num_images,
        seeds=tuple(plan.seed + number for number in range(plan.num_images)),
        negative_prompt=plan.negative_prompt,
        steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        height=plan.height,
        width=plan.width,
        scheduler=plan.scheduler,
    )


class naming:  # noqa: N801 - reads as a word of the with statement
    """Put the entry's title before the sentence of a `StudioError` raised inside the block."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StudioError) and not str(error).startswith(self.title):
            raise type(error)(f"{self.title}: {error}") from error


def _text_routes(concepts: Iterable[Concept]) -> list[Route]:
    routes = (concept.route(denoiser=False) for concept in concepts)
    return [route for route in routes if route is not None]


def _places(plan: CompositionPlan, adapters: Sequence[Adapter]) -> tuple[list[tuple[int, int] | None], list[str]]:
    """Characters that each entry is bound to, and notes about trigger words."""
    notes: list[str] = []
    places: list[tuple[int, int] | None] = []
    for index, (entry, adapter) in enumerate(zip(plan.entries, adapters, strict=True)):
        if entry.words is not None:
            places.append(find_words(plan.prompt, entry.words, entry.occurrence))
            continue
        trigger = adapter.info.trigger
        found = None if trigger is None else find_words(plan.prompt, trigger)
        if trigger is not None and found is None and find_words(entry.prompt or "", trigger) is None:
            notes.append(f'{plan.title_of(index)} answers to "{trigger}", which is not in the prompt.')
        places.append(found)
    while (pair := overlapping(places)) is not None:
        written = [plan.entries[index].words is not None for index in pair]
        if all(written):  # plan_problems has refused it
            break
        dropped = pair[0] if written[1] else pair[1]
        notes.append(
            f"{plan.title_of(pair[0])} and {plan.title_of(pair[1])} answer to the same words; the words count for "
            f"{plan.title_of(pair[0] if dropped == pair[1] else pair[1])}. Give each its own with words: in the plan."
        )
        places[dropped] = None
    return places, notes


def _ready(entry: Entry, adapter: Adapter, base: BaseModel) -> Adapter:
    """The adapter, or the half that is asked for, on the base's device, after all checks."""
    check_adapters(base, [Route(adapter)])
    for name, tensor in adapter.named_tensors().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise AdapterFileError(f"{name} has NaN or infinite values; the training that made the adapter went wrong.")
    chosen = adapter if entry.half is None else select_roles(adapter, [entry.half])
    ready = chosen.to(base.device, base.dtype)
    with patched(base.components(), [Route(ready)]):  # refuses layers that the base does not have
        return ready


def _role(entry: Entry, adapter: Adapter) -> Role:
    if entry.role is not None:
        return entry.role
    said = [role for role in ROLES if role in adapter.info.roles]
    # A whole B-LoRA says content and style: it shows a thing, so it is a subject.
    return said[0] if said and "content" not in adapter.info.roles else "subject"


def require_entries(scene: Scene, strategy: str) -> None:
    """`UserError` unless the plan has an entry."""
    if not scene.concepts:
        raise UserError(f"The strategy {strategy} needs at least one entry: add an adapter to the plan.")
