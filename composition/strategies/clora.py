"""CLoRA (Meral et al. 2024, arXiv 2403.19776): each adapter says the sentence its own way, and attention says whose place it is.

Variants of the prompt, one in plain words and one for each concept with its own words and its adapter, look at the same
latents. A contrastive loss on their cross-attention maps moves the latents so that each concept's words are read in one
place, whichever variant says them, and different concepts' in different ones. Masks made of the maps then fuse the
variants' predictions: ε = Σ M_j ε_j / Σ M_j, apart for both halves of guidance.

Where the published code differs from the paper, this is the paper: maps come from the half with the prompt alone (the code
averages in the negative prompt's), and predictions are made anew after latents have moved (the code fuses those from before).
Adapters need no text encoder part, and canvases need not be square. `gradient: raw` with step_size 20 is the code's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from studio.composition.attention_losses import contrastive_loss
from studio.composition.latent_steps import GradientScale, batching, maps_gradient, moved, noise_unit
from studio.composition.map_layers import map_grid, map_layers
from studio.composition.map_masks import Cleaning, cleaned, threshold_mask, with_background
from studio.composition.plan import Float, Int, Share
from studio.composition.scene import Concept, Scene, require_entries
from studio.composition.strategy import ConceptRoutes, GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at, mean_of
from studio.composition.variants import Variant, prompt_variants
from studio.composition.views import ConceptView
from studio.pipelines.adapters.routing import mask_on_grid
from studio.pipelines.base_model import TextCondition
from studio.pipelines.denoising import (
    AttentionLayer,
    AttentionMaps,
    Branch,
    Capture,
    DenoiseRequest,
    Passes,
    PassOutput,
    Step,
    mean_map,
    token_columns,
)
from studio.pipelines.denoising.attention import check_attention


class CloraConfig(StrategyConfig):
    """Settings of `clora`."""

    step_size: Annotated[Float, Field(ge=0.0)] = Field(
        default=0.01,
        description="How far an update moves the latents, where the noise's own spread is 1; with gradient: raw, what the "
        "gradient is multiplied by (20 in the published code). 0 for none.",
    )
    gradient: GradientScale = Field(
        default="normalised",
        description="normalised: every update moves the latents by step_size, on every base. raw: by the gradient as it is.",
    )
    update_until: Share = Field(default=0.5, description="Until where on the noise schedule latents are updated.")
    repeat_at: tuple[Share, ...] = Field(
        default=(0.0, 0.2, 0.4), description="Where on the noise schedule a step has more updates than one."
    )
    repeats: Annotated[Int, Field(ge=0)] = Field(
        default=0, description="How many more; 20 in the paper, which costs as much as the rest of the picture several times."
    )
    temperature: Annotated[Float, Field(gt=0.0)] = Field(default=0.5, description="τ of the contrastive loss.")
    words: Literal["together", "apart"] = Field(
        default="together",
        description="together: a concept's words, as ohwx and cat, have one map, their sum. apart: each token has one, as in the "
        "published code, where a word that looks everywhere makes the mask the whole canvas.",
    )
    threshold: Annotated[Share, Field(lt=1.0)] = Field(
        default=0.3, description="A place is a concept's where its words are read more than this share of the most."
    )
    masks_from: Share = Field(
        default=0.0, description="From where on the noise schedule masks are used; before, the mean of all variants is."
    )
    cleaning: Cleaning = Field(
        default="none",
        description="What is done to masks: dilate, erode, opening (takes specks away), closing (fills holes) or both.",
    )
    one_by_one: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Keep the graph of one variant at a time: less memory for one more pass each."
    )


class Clora(HasConfig[CloraConfig]):
    """Prompt variants, contrasted by their attention and fused by masks."""

    name: ClassVar[str] = "clora"
    title: ClassVar[str] = "a pass per adapter and a plain one, fused where attention says each belongs (CLoRA)"
    uses_regions: ClassVar[bool] = True
    Config = CloraConfig

    def build(self, scene: Scene, config: CloraConfig) -> CloraStrategy:
        """A pass per concept, and one in plain words."""
        require_entries(scene, self.name)
        strategy = CloraStrategy(scene, config)
        if len(strategy.variants) > 1:
            check_attention(scene.base.unet, f"The strategy {self.name} needs")
        return strategy


@dataclass(frozen=True, eq=False)
class _Said:
    """A variant, encoded.

    Attributes:
        concept: whose adapter acts; None in plain words.
        capture: the maps of all words that are looked at; None for none. labels: of each of these words, whose it is, `[S]`.
    """

    variant: Variant
    concept: Concept | None
    positive: TextCondition
    negative: TextCondition
    capture: Capture | None
    labels: Tensor


class CloraStrategy(GuidedStrategy):
    """A variant for each concept that has words or a region; the others, styles above all, act in every variant."""

    def __init__(self, scene: Scene, config: CloraConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.config = config
        self.concepts = [concept for concept in scene.concepts if _has_a_place(concept)]
        self.everywhere = [concept for concept in scene.concepts if not _has_a_place(concept)]
        self.variants = prompt_variants(scene, self.concepts)
        self.grid = map_grid(scene.base, scene.request.height, scene.request.width)
        layers = map_layers(scene.base, scene.request.height, scene.request.width)
        self._said = [self._encoded(scene, variant, layers) for variant in self.variants]
        self._routes = ConceptRoutes(masks=False)
        self._made: dict[tuple[int, ...], Pass] = {}
        self._masks: Tensor | None = None
        self._maps: dict[int, Tensor] = {}
        self._places: dict[int, Tensor] = {}
        self._repeats_left: list[float] = []
        self.notes = tuple(
            f"{concept.title} has no words in the prompt and no region; it acts everywhere."
            for concept in self.everywhere
            if concept.role != "style"
        )

    def begin(self, passes: Passes) -> None:
        """Keep what makes passes, for those with a gradient."""
        self._passes = batching(passes)

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Forget the batch before."""
        self._masks, self._maps, self._places = None, {}, {}
        self._repeats_left = sorted(self.config.repeat_at)
        return super().prepare(request, latents)

    def passes(self, step: Step) -> Sequence[Pass]:
        """Plain words first, then the variants of the concepts whose time it is."""
        everywhere = active_at(self.everywhere, self.progress(step))
        return [self._pass(said, everywhere) for said in self._acting(step)]

    def branches(self, step: Step) -> Sequence[Branch]:
        """Each variant without and with the prompt; where the latter looks is kept."""
        found: list[Branch] = []
        for said, each in zip(self._acting(step), self.passes(step), strict=True):
            negative, positive = self._repeated(each)
            found += [Branch(negative, each.routes)] if self.is_guided else []
            found.append(Branch(positive, each.routes, capture=said.capture))
        return found

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        """Down the contrastive loss, at steps that have updates; at others no graph is built."""
        looking = [said for said in self._acting(step) if said.capture is not None]
        labels = torch.cat([said.labels for said in looking]) if looking else torch.empty(0)
        if len(labels.unique()) < 2:
            return latents  # nobody to be told apart from
        branches = [branch for branch in self.branches(step) if branch.capture is not None]

        def loss_of(found: Sequence[AttentionMaps]) -> Tensor:
            maps = torch.cat([mean_map(each.words, self.grid) for each in found], dim=1)
            return contrastive_loss(maps, labels.to(maps.device), self.config.temperature)

        for _ in range(self.num_updates(step)):
            _, gradient = maps_gradient(self._passes, latents, step, branches, loss_of, one_by_one=self.config.one_by_one)
            unit = noise_unit(self._passes.request.scheduler, step.timestep)
            latents = moved(latents, gradient, self.config.step_size, self.config.gradient, unit)
        return latents

    def num_updates(self, step: Step) -> int:
        """How many there are at this step: none, one, or at some steps more. To be asked once a step, in order."""
        progress = self.progress(step)
        is_repeated = any(at <= progress for at in self._repeats_left)
        self._repeats_left = [at for at in self._repeats_left if at > progress]
        if self.config.step_size == 0.0 or progress >= self.config.update_until:
            return 0
        return 1 + (self.config.repeats if is_repeated else 0)

    def observe(self, step: Step, outputs: Sequence[PassOutput]) -> None:
        """Masks of this step, from the half with the prompt."""
        self._masks, self._maps, self._places = None, {}, {}
        for said, output in zip(self._acting(step), outputs[1::2] if self.is_guided else outputs, strict=True):
            index = said.variant.concept
            if said.concept is None or index is None:
                continue
            prediction = output.prediction
            assert prediction is not None, "the pass was to run to its end"
            size = (prediction.shape[-2], prediction.shape[-1])
            own = None
            if output.maps is not None and bool((said.labels == index).any()):
                own = mean_map(output.maps.words, self.grid)[:, (said.labels == index).to(prediction.device)]
                self._maps[index] = own.mean(dim=1)
            self._places[index] = self._mask(said.concept, own, size).to(prediction.device)
        if self._places:
            self._masks = with_background(torch.stack(list(self._places.values())))

    def fold(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """ε = Σ M_j ε_j / Σ M_j; the plain mean before masks are used."""
        if self._masks is None or self.progress(step) < self.config.masks_from:
            return mean_of(predictions)
        weights = self._masks[:, :, None]
        return (weights * torch.stack(list(predictions))).sum(dim=0) / weights.sum(dim=0)

    def views(self) -> Sequence[ConceptView]:
        """Masks and maps of the last step."""
        return [
            ConceptView(concept.title, self._places.get(index), self._maps.get(index))
            for index, concept in enumerate(self.concepts)
        ]

    def _acting(self, step: Step) -> list[_Said]:
        active = {id(concept) for concept in active_at(self.concepts, self.progress(step))}
        return [said for said in self._said if said.concept is None or id(said.concept) in active]

    def _pass(self, said: _Said, everywhere: Sequence[Concept]) -> Pass:
        acting = [*everywhere, *([] if said.concept is None else [said.concept])]
        key = (id(said), *(id(concept) for concept in acting))
        if key not in self._made:
            self._made[key] = Pass(said.positive, said.negative, self._routes.of(acting))
        return self._made[key]

    def _mask(self, concept: Concept, maps: Tensor | None, size: tuple[int, int]) -> Tensor:
        """`[B, h, w]`: the concept's region, or where its words are read."""
        if concept.mask is not None:
            return mask_on_grid(concept.mask, *size).expand(self._batch, *size)
        assert maps is not None, "a concept without a region has words"
        mask = cleaned(threshold_mask(maps, self.config.threshold), self.config.cleaning)
        return F.interpolate(mask[:, None], size, mode="nearest")[:, 0]

    def _encoded(self, scene: Scene, variant: Variant, layers: Sequence[AttentionLayer]) -> _Said:
        concept = None if variant.concept is None else self.concepts[variant.concept]
        acting = [*self.everywhere, *([] if concept is None else [concept])]
        negative = scene.plan.negative_prompt if concept is None else scene.own_negative(concept)
        positive = scene.condition(variant.prompt, acting)
        words = [(index, tokens) for index, tokens in enumerate(variant.tokens) if tokens]
        if self.config.words == "apart":
            words = [(index, (token,)) for index, tokens in words for token in tokens]
        columns = token_columns([tokens for _, tokens in words], positive.prompt_embeds.shape[1])
        return _Said(
            variant,
            concept,
            positive,
            scene.negative(negative, acting),
            Capture(tuple(layers), columns) if words else None,
            torch.tensor([index for index, _ in words], dtype=torch.long),
        )


def _has_a_place(concept: Concept) -> bool:
    """Whether it has a variant and a mask of its own."""
    return concept.mask is not None or (concept.words is not None and concept.role != "style")
