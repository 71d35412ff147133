"""A layout out of a first pass: boxes around the places at which each entry's words are read.

The base alone draws the plan's first picture with the entries' plain words ("cat" for "ohwx cat"), which places things by the
prompt and by the seed's noise. The attention maps of these words, over the steps in which a picture gets its layout, become
boxes; drawn with the same seed, strategies with regions then agree with what the noise wants to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.composition.attention_losses import scaled_to_one
from studio.composition.map_layers import map_grid, map_layers
from studio.composition.map_masks import box_of, largest_patch
from studio.composition.plan import CompositionPlan, Region
from studio.composition.plan_checks import plan_problems
from studio.composition.scene import Concept, Scene
from studio.composition.strategy import GuidedStrategy, Pass
from studio.composition.variants import prompt_variants
from studio.pipelines.denoising import (
    Branch,
    Capture,
    DenoiseRequest,
    PassOutput,
    Step,
    denoise,
    make_scheduler,
    mean_map,
    token_columns,
)
from studio.pipelines.errors import UserError
from studio.pipelines.generation import initial_noise

LOOKED_AT = (0.15, 0.7)
"""The part of the noise schedule whose maps count: before, nothing is anywhere; after, words are read for details."""

THRESHOLD = 0.22
"""A place belongs to a thing whose words are read there more than this share of the most, and more than the other things'."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What was found.

    Attributes:
        plan: with a box for each entry that has words and no region yet.
        latents: of the first pass's picture, `[1, C, h, w]`.
        titles: of the entries that have a box now, with maps `[h, w]` in 0..1 of their words.
        notes: a sentence for each entry that has none, and why.
    """

    plan: CompositionPlan
    latents: Tensor
    titles: tuple[str, ...]
    maps: tuple[Tensor, ...]
    notes: tuple[str, ...]


@torch.no_grad()
def propose_layout(
    scene: Scene,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Layout:
    """Draw the plan's first picture by the base alone, and put boxes where its words are read.

    Raises:
        UserError: no entry has words in the prompt and needs a region.
    """
    wanted = [index for index, concept in enumerate(scene.concepts) if concept.words is not None and concept.role != "style"]
    boxless = [index for index in wanted if scene.plan.entries[index].region is None]
    if not boxless:
        raise UserError("There is no layout to propose: no entry has words in the prompt and no region yet.")
    strategy = LookingStrategy(scene, [scene.concepts[index] for index in wanted])
    request, base = scene.request, scene.base
    generators = [torch.Generator("cpu").manual_seed(request.seeds[0])]
    latents = denoise(
        base,
        DenoiseRequest(
            noise=initial_noise(base, generators, request.height, request.width),
            height=request.height,
            width=request.width,
            scheduler=make_scheduler(base.scheduler, request.scheduler),
            num_steps=request.steps,
            generators=generators,
        ),
        strategy,
        on_step=on_step,
        should_stop=should_stop,
    )
    maps = scaled_to_one(strategy.mean()[0])
    found = dict(zip(wanted, boxes_of(maps), strict=True))
    plan = _with_boxes(scene.plan, {index: found[index] for index in boxless})
    notes = [
        f"{concept.title} has no words in the prompt; it gets no box."
        for index, concept in enumerate(scene.concepts)
        if index not in wanted and concept.role != "style" and concept.mask is None
    ]
    chosen = [place for place, index in enumerate(wanted) if index in boxless]
    titles = tuple(scene.plan.entries[index].title for index in boxless)
    return Layout(plan, latents, titles, tuple(maps[place] for place in chosen), tuple(notes))


def boxes_of(maps: Tensor, threshold: float = THRESHOLD) -> list[tuple[float, float, float, float]]:
    """A box for each of the maps `[N, h, w]` in 0..1: around the largest patch where it is the strongest, and strong."""
    owner = maps.argmax(dim=0)
    boxes = []
    for index, own in enumerate(maps):
        patch = largest_patch((own > threshold) & (owner == index))
        # One that is nowhere the strongest shares a place with another; it still is somewhere.
        boxes.append(box_of(patch if bool(patch.any()) else largest_patch(own >= own.max())))
    return boxes


class LookingStrategy(GuidedStrategy):
    """The base alone with plain words; where these are read is summed up."""

    def __init__(self, scene: Scene, concepts: Sequence[Concept]) -> None:
        super().__init__(scene.request.guidance_scale)
        plain = prompt_variants(scene, concepts)[0]
        positive = scene.condition(plain.prompt)
        self._pass = Pass(positive, scene.negative(scene.plan.negative_prompt))
        layers = map_layers(scene.base, scene.request.height, scene.request.width)
        self._capture = Capture(layers, token_columns(plain.tokens, positive.prompt_embeds.shape[1]))
        self._grid = map_grid(scene.base, scene.request.height, scene.request.width)
        self._sum: Tensor | None = None

    def passes(self, step: Step) -> Sequence[Pass]:
        """One."""
        return [self._pass]

    def branches(self, step: Step) -> Sequence[Branch]:
        """Without and with the prompt; where the latter looks is kept."""
        *others, last = super().branches(step)
        return [*others, Branch(last.condition, last.routes, capture=self._capture)]

    def observe(self, step: Step, outputs: Sequence[PassOutput]) -> None:
        """Add what this step looks at, if it counts."""
        maps = outputs[-1].maps
        assert maps is not None, "the pass with the prompt has a capture"
        counts = LOOKED_AT[0] <= self.progress(step) <= LOOKED_AT[1] or (self._sum is None and step.index == step.count - 1)
        if counts:
            found = mean_map(maps.words, self._grid)
            self._sum = found if self._sum is None else self._sum + found

    def mean(self) -> Tensor:
        """Where each concept's words are read, `[B, N, h, w]`, up to a factor."""
        assert self._sum is not None, "the last step counts where no other does"
        return self._sum


def _with_boxes(plan: CompositionPlan, boxes: dict[int, tuple[float, float, float, float]]) -> CompositionPlan:
    """The plan with regions; where any overlap, the smaller one is in front."""

    def made(order: dict[int, int]) -> CompositionPlan:
        entries = list(plan.entries)
        for index, box in boxes.items():
            numbers = tuple(round(side, 4) for side in box)
            region = Region.model_validate({"box": numbers} | ({"z": order[index]} if order else {}))
            entries[index] = entries[index].model_copy(update={"region": region})
        return plan.model_copy(update={"entries": tuple(entries)})

    proposed = made({})
    if not plan_problems(proposed):
        return proposed
    by_size = sorted(boxes, key=lambda index: -_area(boxes[index]))
    highest = max((entry.region.z or 0 for entry in plan.entries if entry.region is not None), default=0)
    return made({index: highest + place for place, index in enumerate(by_size, start=1)})


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
