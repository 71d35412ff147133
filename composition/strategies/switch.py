"""LoRA Switch (Zhong et al. 2024, arXiv 2402.16843): one adapter at a time, each a few steps, in turns.

At step i of k adapters, number ⌊(i mod kτ) / τ⌋ acts alone. It costs what a picture with one adapter costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from studio.composition.plan import Int
from studio.composition.scene import Scene, require_entries
from studio.composition.strategy import GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at, bare_pass, own_pass
from studio.composition.turns import in_role_order, turn_length
from studio.pipelines.denoising import Step


class SwitchConfig(StrategyConfig):
    """Settings of `switch`."""

    steps_per_turn: Annotated[Int, Field(ge=1)] | None = Field(
        default=None,
        description="How many steps an adapter acts before the next one does. By default the paper's 5, or fewer where there "
        "are too few steps for everyone to have a turn.",
    )
    order: Literal["roles", "plan"] = Field(
        default="roles", description="Who begins: the subject (found best by the paper), or the plan's first entry."
    )


class Switch(HasConfig[SwitchConfig]):
    """The adapters take turns."""

    name: ClassVar[str] = "switch"
    title: ClassVar[str] = "one adapter at a time, a few steps each, in turns (LoRA Switch)"
    uses_regions: ClassVar[bool] = False
    Config = SwitchConfig

    def build(self, scene: Scene, config: SwitchConfig) -> SwitchStrategy:
        """A pass per adapter, of which one is made at each step."""
        require_entries(scene, self.name)
        return SwitchStrategy(scene, config)


class SwitchStrategy(GuidedStrategy):
    """One pass a step; adapters whose time on the noise schedule it is not are passed over."""

    def __init__(self, scene: Scene, config: SwitchConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.concepts = in_role_order(scene.concepts) if config.order == "roles" else list(scene.concepts)
        self.steps_per_turn = config.steps_per_turn
        self._passes = {id(concept): own_pass(scene, concept) for concept in self.concepts}
        self._bare = bare_pass(scene)

    def passes(self, step: Step) -> Sequence[Pass]:
        """That of the adapter whose turn it is."""
        active = active_at(self.concepts, self.progress(step))
        if not active:
            return [self._bare]
        length = self.steps_per_turn or turn_length(step.count, len(self.concepts))
        turn = step.index % (len(active) * length) // length
        return [self._passes[id(active[turn])]]
