"""Weighted switch (W-Switch, arXiv 2606.03792): turns as in LoRA Switch, longer for what the prompt says more about.

Each adapter gets a share of the steps in proportion to its weight, and the last steps belong to the one whose identity
matters most. The paper's summary gives shares and the reserved end, not the order of turns: here they are spread evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from studio.composition.plan import Int, Text
from studio.composition.prompt_weights import Weighting, concept_weights
from studio.composition.scene import Concept, Scene, require_entries
from studio.composition.strategy import GuidedStrategy, HasConfig, Pass, StrategyConfig, active_at, bare_pass, own_pass
from studio.composition.turns import in_role_order, shares_of_steps, spread_turns, turn_length
from studio.pipelines.denoising import Step
from studio.pipelines.errors import UserError

MOST_RESERVED = 0.25
"""The share of all steps that is reserved at most: the paper's 5 steps are of 100 and 200."""


class WeightedSwitchConfig(StrategyConfig):
    """Settings of `weighted-switch`."""

    weights: Weighting = Field(
        default="prompt",
        description="prompt: by how much the prompt changes without the adapter's words. trigger: by how near its words are to "
        "the prompt. equal: all alike.",
    )
    identity: Text | None = Field(
        default=None, description="Name of the entry that has the last steps; by default the first subject."
    )
    last_steps: Annotated[Int, Field(ge=0)] = Field(
        default=5, description="How many steps at the end are reserved for it, a quarter of all at most."
    )


class WeightedSwitch(HasConfig[WeightedSwitchConfig]):
    """The adapters take turns in proportion to what the prompt says about them."""

    name: ClassVar[str] = "weighted-switch"
    title: ClassVar[str] = "turns in proportion to the prompt's words, the identity last (W-Switch)"
    uses_regions: ClassVar[bool] = False
    Config = WeightedSwitchConfig

    def build(self, scene: Scene, config: WeightedSwitchConfig) -> WeightedSwitchStrategy:
        """A pass per adapter, of which one is made at each step."""
        require_entries(scene, self.name)
        return WeightedSwitchStrategy(scene, config)


class WeightedSwitchStrategy(GuidedStrategy):
    """One pass a step, by a timetable that is made when the number of steps is known."""

    def __init__(self, scene: Scene, config: WeightedSwitchConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        weights = {id(c): weight for c, weight in zip(scene.concepts, concept_weights(scene, config.weights), strict=True)}
        self.concepts = in_role_order(scene.concepts)
        self.weights = [weights[id(concept)] for concept in self.concepts]
        self.identity = _identity(self.concepts, config.identity)
        self.last_steps = config.last_steps
        self._passes = {id(concept): own_pass(scene, concept) for concept in self.concepts}
        self._bare = bare_pass(scene)
        self.timetable: list[int] = []

    def passes(self, step: Step) -> Sequence[Pass]:
        """That of the adapter whose step it is; where its time is over, that of the next one that is active."""
        if len(self.timetable) != step.count:
            self.timetable = self.make_timetable(step.count)
        active = {id(concept) for concept in active_at(self.concepts, self.progress(step))}
        first = self.timetable[step.index]
        for offset in range(len(self.concepts)):
            concept = self.concepts[(first + offset) % len(self.concepts)]
            if id(concept) in active:
                return [self._passes[id(concept)]]
        return [self._bare]

    def make_timetable(self, num_steps: int) -> list[int]:
        """Which adapter acts at which of `num_steps`."""
        if len(self.concepts) == 1:
            return [0] * num_steps
        reserved = min(self.last_steps, int(num_steps * MOST_RESERVED))
        shares = shares_of_steps(self.weights, num_steps - reserved)
        turns = spread_turns(shares, turn_length(num_steps, len(self.concepts)))
        return [*turns, *[self.identity] * reserved]


def _identity(concepts: Sequence[Concept], name: str | None) -> int:
    if name is None:
        return 0  # in the order of roles a subject comes first
    for index, concept in enumerate(concepts):
        if concept.entry.title == name:
            return index
    names = ", ".join(concept.entry.title for concept in concepts)
    raise UserError(f"strategy weighted-switch: identity = {name!r} is the name of no entry; there is {names}.")
