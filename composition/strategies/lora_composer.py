"""LoRA-Composer (Yang et al. 2024, arXiv 2403.11627): things in boxes, by what places read and a gradient.

In one pass of one denoiser: in cross-attention each region's places read the region's text through its own adapter, and what
they read takes the place of what the prompt says (injection); regions do not see each other in self-attention (isolation).
Before a step the latents move down the gradient of three losses on attention maps: each word is read in its region
(enhancement, which carries the result), in all of it (fill), and what is in the region does not look outside (region). At the
very start the noise is rearranged so that each thing lies where it should (re-initialisation). Each part can be switched off.

Where the published code differs from the paper, this is the paper: re-initialisation follows one gradient step (the code has
none; `settle_first: false`), and the region loss weighs 0.8 (the code's 10 against 8 is 1.25). `gradient: raw` with step_size
160 is the code's step, 20 times 8. The paper's adapters act through the keys, the values and the output projection of
cross-attention alone (`adapter: cross-attention`); by default here the whole adapter acts in its region, whatever its type.
Where boxes overlap, the one in front has the place, in attention, losses and noise alike; the code averages. Updates here are
more and earlier than the paper's one at each step of the first half, until the loss rises: where things are is decided early,
and late updates wash out who they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.composition.attention_losses import enhancement_loss, fill_loss, region_loss, smoothed
from studio.composition.latent_steps import GradientScale, maps_gradient, moved, noise_unit
from studio.composition.map_layers import map_grid, map_layers, place_layers
from studio.composition.map_masks import region_on_grid
from studio.composition.placed import Placed, PlacedStrategy
from studio.composition.plan import Float, Int, Share
from studio.composition.reinitialise import reinitialised
from studio.composition.scene import Concept, Scene, naming, require_entries
from studio.composition.spans import find_words, token_span
from studio.composition.strategy import HasConfig, StrategyConfig
from studio.composition.variants import plain_words, prompt_variants
from studio.composition.views import ConceptView
from studio.pipelines.denoising import (
    AttentionMaps,
    Branch,
    Capture,
    DenoiseRequest,
    Isolation,
    Passes,
    Step,
    mean_map,
    token_columns,
)
from studio.pipelines.denoising.attention import check_attention
from studio.pipelines.errors import UserError

Switch = Annotated[bool, Field(strict=True)]
Weight = Annotated[Float, Field(ge=0.0)]

_CROSS_ATTENTION = re.compile(r".*\.attn2\.(to_k|to_v|to_out\.0)")


class LoraComposerConfig(StrategyConfig):
    """Settings of `lora-composer`."""

    adapter: Literal["whole", "cross-attention"] = Field(
        default="whole",
        description="whole: all of an adapter acts in its region. cross-attention: only its keys, values and output projections "
        "there, as in the paper.",
    )
    region_prompt: Literal["variant", "prompt", "words"] = Field(
        default="prompt",
        description="What a region reads whose entry has no prompt of its own. prompt: the prompt. variant: that with plain "
        "words for the others. words: the entry's words alone.",
    )
    injection: Switch = Field(default=True, description="Whether regions read texts of their own, by adapters of their own.")
    isolation: Switch = Field(default=True, description="Whether regions do not see each other in self-attention.")
    reinitialise: Switch = Field(default=True, description="Whether the noise is rearranged before the first step.")
    settle_first: Switch = Field(default=True, description="Whether one update comes before that, as in the paper.")
    enhancement_weight: Weight = Field(default=1.0, description="Of the loss that has words read in their region.")
    fill_weight: Weight = Field(default=0.25, description="α, of the loss that has all of the region filled.")
    region_weight: Weight = Field(
        default=0.8, description="β, of the loss that keeps what is in the region from looking outside; 1.25 in the code."
    )
    step_size: Weight = Field(
        default=0.03,
        description="How far an update moves the latents at the start, where the noise's own spread is 1, falling by 0.7 to the "
        "end; with gradient: raw, what the gradient is multiplied by (160 in the code). 0 for none.",
    )
    gradient: GradientScale = Field(
        default="normalised",
        description="normalised: every update moves the latents by step_size, on every base. raw: by the gradient as it is.",
    )
    update_until: Share = Field(
        default=0.25, description="Until where on the noise schedule latents are updated; 0.5 in the code. The first step always."
    )
    stop_from: Share = Field(
        default=1.0,
        description="From where on a picture's updates end for good as soon as its loss has risen; 1 for never, 0.1 in the code.",
    )
    updates: Annotated[Int, Field(ge=1)] = Field(default=4, description="How many updates a step has; 1 in the paper.")


class LoraComposer(HasConfig[LoraComposerConfig]):
    """Boxes, by injection, isolation and a gradient."""

    name: ClassVar[str] = "lora-composer"
    title: ClassVar[str] = "each adapter in its box, with words, noise and a gradient that put it there (LoRA-Composer)"
    uses_regions: ClassVar[bool] = True
    Config = LoraComposerConfig

    def build(self, scene: Scene, config: LoraComposerConfig) -> LoraComposerStrategy:
        """One pass a step, and one with a gradient at steps with an update."""
        require_entries(scene, self.name)
        for concept in scene.concepts:
            if concept.mask is None and (concept.entry.prompt is not None or concept.entry.negative_prompt is not None):
                raise UserError(f"{concept.title} has a prompt of its own and no region to read it; give it a box or a mask.")
        if any(concept.mask is not None for concept in scene.concepts):
            check_attention(scene.base.unet, f"The strategy {self.name} needs")
        return LoraComposerStrategy(_routed(scene) if config.adapter == "cross-attention" else scene, config)


@dataclass(frozen=True, eq=False)
class _Target:
    """What the losses ask of one region: that the words at `columns` `[T, S]` (None: no words) are read in `mask` `[h, w]`."""

    columns: Tensor | None
    mask: Tensor


class LoraComposerStrategy(PlacedStrategy):
    """Entries with a region are put there; those without act everywhere, as a scene or a style does."""

    def __init__(self, scene: Scene, config: LoraComposerConfig) -> None:
        isolation = Isolation() if config.isolation else None
        super().__init__(scene, isolation, lambda concept: _region_prompt(scene, concept, config), reads_own=config.injection)
        self.config = config
        request = scene.request
        self.grid = map_grid(scene.base, request.height, request.width)
        self._layers = map_layers(scene.base, request.height, request.width)
        self._place_layers = place_layers(scene.base, request.height, request.width) if config.region_weight else ()
        self._targets = {id(each): self._target(scene, each) for each in self.placed}
        self._looking: dict[int, Branch] = {}
        self._maps: dict[int, Tensor] = {}
        self._moving = self._last_losses = torch.empty(0)
        self.notes = (*self.notes, *self._wordless())

    def begin(self, passes: Passes) -> None:
        """Keep what makes passes."""
        self._passes = passes

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Rearrange the noise, after an update."""
        latents = super().prepare(request, latents)
        self._looking.clear()
        self._maps.clear()
        self._moving = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        self._last_losses = torch.full((len(latents),), float("inf"), device=latents.device)
        step = self._passes.step(request.first_step)
        placed = self.placed_at(step)
        if (
            not self.config.reinitialise
            or request.picture is not None
            or all(self._targets[id(each)].columns is None for each in placed)
        ):
            return latents
        if self.config.settle_first and self._has_losses:
            latents = self._updated(step, latents, self.config.step_size)
        with torch.no_grad(), self._passes.open(latents, step, [self._looking_branch(step)], stops_early=True) as (output,):
            assert output.maps is not None
            found = self._word_maps(output.maps, placed)
        maps = [None if each is None else each.sum(dim=1) for each in found]
        order = sorted(range(len(placed)), key=lambda index: _depth(placed[index]))
        return reinitialised(latents, [maps[index] for index in order], [placed[index].mask for index in order])

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        """Down the losses, as long as they fall."""
        progress = self.progress(step)
        is_early = progress < self.config.update_until or step.index == self._passes.request.first_step
        if not self._has_losses or not self.placed_at(step) or not is_early:
            return latents
        for _ in range(self.config.updates):
            if not bool(self._moving.any()):
                return latents
            latents = self._updated(step, latents, self.config.step_size * (1.0 - 0.5 * progress) ** 0.5)
        return latents

    def views(self) -> Sequence[ConceptView]:
        """Regions, and maps of the last update."""
        return [
            ConceptView(each.concept.title, each.mask.expand(self._batch, *each.mask.shape), self._maps.get(id(each)))
            for each in self.placed
        ]

    @property
    def _has_losses(self) -> bool:
        config = self.config
        return config.step_size > 0.0 and max(config.enhancement_weight, config.fill_weight, config.region_weight) > 0.0

    def _updated(self, step: Step, latents: Tensor, size: float) -> Tensor:
        """The latents after one update of the pictures that still move."""
        placed = self.placed_at(step)

        def loss_of(found: Sequence[AttentionMaps]) -> Tensor:
            (maps,) = found
            return self._losses(maps, placed)

        losses, gradient = maps_gradient(self._passes, latents, step, [self._looking_branch(step)], loss_of)
        if self.progress(step) >= self.config.stop_from:
            self._moving = self._moving & (losses <= self._last_losses)
        self._last_losses = losses
        unit = noise_unit(self._passes.request.scheduler, step.timestep)
        return moved(latents, gradient, size * self._moving.to(latents), self.config.gradient, unit)

    def _losses(self, maps: AttentionMaps, placed: Sequence[Placed]) -> Tensor:
        """Of each picture, `[B]`."""
        config = self.config
        places = mean_map(_as_pictures(maps.places)).squeeze(1) if maps.places else None
        total = torch.zeros(self._batch, device=self._moving.device)
        for each, words in zip(placed, self._word_maps(maps, placed), strict=True):
            mask = self._targets[id(each)].mask.to(total.device)
            if words is not None:
                self._maps[id(each)] = words.detach().sum(dim=1)
                read = smoothed(words)
                total = (
                    total + config.enhancement_weight * enhancement_loss(read, mask) + config.fill_weight * fill_loss(read, mask)
                )
            if places is not None:
                total = total + config.region_weight * region_loss(places, mask)
        return total

    def _word_maps(self, maps: AttentionMaps, placed: Sequence[Placed]) -> list[Tensor | None]:
        """Of each region's words, `[B, S, h, w]`; None where there are none."""
        columns = [self._targets[id(each)].columns for each in placed]
        if self.reads_own:
            return [None if own is None else mean_map(maps.regions[index], self.grid) for index, own in enumerate(columns)]
        counts = [0 if own is None else own.shape[1] for own in columns]
        parts = mean_map(maps.words, self.grid).split(counts, dim=1) if any(counts) else [None] * len(counts)
        return [part if count else None for part, count in zip(parts, counts, strict=True)]

    def _looking_branch(self, step: Step) -> Branch:
        """The pass with the prompt, whose attention is looked at."""
        branch = self.branches(step)[-1]
        if id(branch) not in self._looking:
            columns = [self._targets[id(each)].columns for each in self.placed_at(step)]
            known = [own for own in columns if own is not None]
            layers = (*self._layers, *self._place_layers)
            capture = (
                Capture(layers, region_columns=tuple(columns))
                if self.reads_own
                else Capture(layers, torch.cat(known, dim=1) if known else None)
            )
            self._looking[id(branch)] = replace(branch, capture=capture)
        return self._looking[id(branch)]

    def _target(self, scene: Scene, placed: Placed) -> _Target:
        """The words' tokens in what the region reads, and its cells."""
        concept, mask = placed.concept, region_on_grid(placed.mask, *self.grid)
        prompt = placed.prompt if self.reads_own else scene.plan.prompt
        span = None
        if not self.reads_own or prompt == scene.plan.prompt:
            span = concept.span
        elif (found := _find(prompt, concept)) is not None:
            with naming(concept.title):
                span = token_span(scene.base.tokenizers[0], prompt, found)
        if span is None:
            return _Target(None, mask)
        length = placed.positive.prompt_embeds.shape[1]
        return _Target(token_columns([[token] for token in span.tokens], length), mask)

    def _wordless(self) -> list[str]:
        """Notes about regions that nothing draws words to."""
        return [
            f"{each.concept.title} has no words in what its region reads; no gradient puts it there."
            for each in self.placed
            if self._targets[id(each)].columns is None
        ]


def _region_prompt(scene: Scene, concept: Concept, config: LoraComposerConfig) -> str:
    """What a concept's places read."""
    if concept.entry.prompt is not None or concept.words is None or config.region_prompt == "prompt":
        return scene.own_prompt(concept)
    if config.region_prompt == "variant":
        spoken = [each for each in scene.concepts if each.words is not None and each.role != "style"]
        place = next((index for index, each in enumerate(spoken) if each is concept), None)
        return scene.own_prompt(concept) if place is None else prompt_variants(scene, spoken)[place + 1].prompt
    assert concept.span is not None
    article = re.search(r"\b(an?|the)\s+$", scene.plan.prompt[: concept.span.start], re.IGNORECASE)
    return concept.words if article is None else f"{article[1].lower()} {concept.words}"


def _find(prompt: str, concept: Concept) -> tuple[int, int] | None:
    """Where a prompt of its own speaks of the concept: by its words, its trigger, or plain words."""
    for words in (concept.words, concept.entry.words, concept.adapter.info.trigger, plain_words(concept)):
        if words is not None and (found := find_words(prompt, words)) is not None:
            return found
    return None


def _routed(scene: Scene) -> Scene:
    """The scene with what of each adapter the paper routes by region: keys, values, output projections, and text encoders."""
    concepts = []
    for concept in scene.concepts:
        if concept.mask is None:
            concepts.append(concept)
            continue
        patches = concept.adapter.patches
        kept = {
            path: patch for path, patch in patches.items() if path.component != "unet" or _CROSS_ATTENTION.fullmatch(path.module)
        }
        if not any(path.component == "unet" for path in kept):
            raise UserError(
                f"{concept.title} changes no keys, values or output projections of cross-attention; set adapter: whole."
            )
        concepts.append(replace(concept, adapter=replace(concept.adapter, patches=kept)))
    return replace(scene, concepts=tuple(concepts))


def _depth(placed: Placed) -> int:
    region = placed.concept.entry.region
    return 0 if region is None or region.z is None else region.z


def _as_pictures(places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:, None] for name, tensor in places.items()}
