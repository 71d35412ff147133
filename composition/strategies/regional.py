"""Regional: every adapter in its own region with its own words, all in one pass.

Layers with places act by the region's mask, and the region's places read the region's text, whose keys and values its own
adapter makes: the whole adapter acts where it belongs, whatever its type. (LoRA-Composer, arXiv 2403.11627, and Mix-of-Show route
the text's keys, values and the output projection only.) Entries without a region act everywhere. What has no place, such as time
embeddings, biases and norms, is left out of regions and named.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from studio.composition.placed import PlacedStrategy
from studio.composition.scene import Scene
from studio.composition.strategy import HasConfig, StrategyConfig
from studio.pipelines.denoising import STRICT, Isolation
from studio.pipelines.errors import UserError

_ISOLATIONS = {"none": None, "attention": Isolation(), "strict": STRICT}


class RegionalConfig(StrategyConfig):
    """Settings of `regional`."""

    isolation: Literal["none", "attention", "strict"] = Field(
        default="attention",
        description="Which places see which. none: all. attention: regions do not see each other in self-attention, as in "
        "LoRA-Composer. strict: nothing of one region reaches another, nor the rest of the canvas.",
    )


class Regional(HasConfig[RegionalConfig]):
    """One pass, a region for each."""

    name: ClassVar[str] = "regional"
    title: ClassVar[str] = "each adapter in its region with words of its own, in one pass"
    uses_regions: ClassVar[bool] = True
    Config = RegionalConfig

    def build(self, scene: Scene, config: RegionalConfig) -> PlacedStrategy:
        """One pass a step."""
        for concept in scene.concepts:
            if concept.mask is None and (concept.entry.prompt is not None or concept.entry.negative_prompt is not None):
                raise UserError(f"{concept.title} has a prompt of its own and no region to read it; give it a box or a mask.")
        return PlacedStrategy(scene, _ISOLATIONS[config.isolation], scene.own_prompt)
