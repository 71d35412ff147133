"""The adapters of a scene as one: what `merge` draws with, and what is exported."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from studio.composition.activations import input_grams
from studio.composition.merging import Merged, Weighted, compress, merge_by_regression, merge_exactly, merge_layers
from studio.composition.plan import Float, Int
from studio.composition.scene import Concept, Scene
from studio.composition.strategy import StrategyConfig
from studio.pipelines.adapters import ParameterPath, Route
from studio.pipelines.errors import UserError

Method: TypeAlias = Literal["sum", "average", "regression", "ties", "dare", "magnitude"]

_ONLY_FOR = {
    "density": ("ties", "dare", "magnitude"),
    "rule_seed": ("dare",),
    "ridge": ("regression",),
    "sample_steps": ("regression",),
}


class MergeConfig(StrategyConfig):
    """Settings of `merge`."""

    method: Method = Field(
        default="sum",
        description="sum: all at their strengths. average: their mean. regression: each keeps its effect on its own pictures "
        "(RegMean, Mix-of-Show). ties, dare, magnitude: small or chosen numbers are dropped, which can lose whole concepts.",
    )
    rank: Annotated[Int, Field(ge=1)] | None = Field(
        default=None, description="Compress the merge to a LoRA of at most this rank in every layer; the error is said."
    )
    density: Annotated[Float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None, description="With ties, dare and magnitude: which share of each change's numbers stays; by default .5."
    )
    rule_seed: Annotated[Int, Field(ge=0)] = Field(default=0, description="With dare: decides which numbers are dropped.")
    ridge: Annotated[Float, Field(gt=0.0)] = Field(
        default=1e-4, description="With regression: the larger, the nearer to the mean of the adapters."
    )
    sample_steps: Annotated[Int, Field(ge=1)] = Field(
        default=8, description="With regression: denoising steps of the pictures that each adapter is measured on."
    )

    @model_validator(mode="after")
    def _settings_fit_the_method(self) -> MergeConfig:
        for name, methods in _ONLY_FOR.items():
            if name in self.model_fields_set and self.method not in methods:
                raise ValueError(f"{name} belongs to method {' or '.join(methods)}, and the method is {self.method}.")
        return self


def merged_adapter(scene: Scene, config: MergeConfig) -> Merged:
    """All adapters of the scene as one, to use at strength 1.

    Raises:
        UserError: an entry acts in a region or for a time only, which one adapter cannot.
    """
    for concept in scene.concepts:
        if concept.mask is not None or concept.entry.active_from > 0 or concept.entry.active_to < 1:
            what = "in a region" if concept.mask is not None else "for a part of the time"
            raise UserError(
                f"{concept.title} acts {what} only, and merged into one adapter it would act everywhere and always. Leave that "
                "out, or merge by sum without a rank."
            )
    parts = [Weighted(concept.adapter.to("cpu"), concept.strength) for concept in scene.concepts]
    components = scene.base.components()
    if config.method == "sum":
        merged = merge_exactly(parts, components)
    elif config.method == "regression":
        merged = merge_by_regression(parts, _grams(scene, config), ridge=config.ridge, components=components)
    else:
        density = 0.5 if config.density is None else config.density
        merged = merge_layers(parts, config.method, density=density, seed=config.rule_seed, components=components)
    return merged if config.rank is None else compress(merged, config.rank, components)


def split_route(adapter_route: Route) -> tuple[tuple[Route, ...], tuple[Route, ...]]:
    """One adapter's route as that of the denoiser and that of the text encoders, each empty if it has no part there."""
    found = []
    for denoiser in (True, False):
        adapter = adapter_route.adapter
        patches = {path: patch for path, patch in adapter.patches.items() if (path.component == "unet") == denoiser}
        found.append((replace(adapter_route, adapter=replace(adapter, patches=patches)),) if patches else ())
    return found[0], found[1]


@torch.no_grad()
def _grams(scene: Scene, config: MergeConfig) -> list[dict[ParameterPath, Tensor]]:
    """What each adapter's layers see while it draws its own concept."""
    layers = list(dict.fromkeys(path for concept in scene.concepts for path in concept.adapter.patches))
    request = replace(scene.request, steps=config.sample_steps)
    return [
        input_grams(scene.base, layers, [concept_prompt(scene, concept)], request, [Route(concept.adapter, concept.strength)])
        for concept in scene.concepts
    ]


def concept_prompt(scene: Scene, concept: Concept) -> str:
    """What to say for pictures of one concept alone: its own prompt, or "a photo of" its words, or the plan's prompt."""
    if concept.entry.prompt is not None:
        return concept.entry.prompt
    words = concept.words or concept.adapter.info.trigger
    return scene.plan.prompt if words is None else f"a photo of {words}"
