"""CMLoRA (Zou et al. 2025, arXiv 2502.04923): composite at about half its cost, with one adapter in the lead.

At each step every adapter contributes, but only the dominant one runs the whole denoiser; the others begin at the deep feature
that they kept, each for itself and for each half of the guidance. Who leads, and when, follows from what the adapters do to high
and low frequencies (`frequency_profiles`), by the timetable in `dominance`, which also names what the published code leaves out.

The paper refreshes a feature only when its adapter leads. In its 220 steps that is often enough; in 30 steps, or with one adapter
of either kind, a feature would stand for half the schedule. So by default none stands for more than four steps
(`refresh_interval`); `dominant` is the paper's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from studio.composition.dominance import PAPERS_SWITCH, Dominance, Turn, dominant_weights, turn_steps
from studio.composition.frequencies import late_measure
from studio.composition.frequency_profiles import profile_of
from studio.composition.plan import Float, Int, Share
from studio.composition.scene import Concept, Scene, require_entries
from studio.composition.strategy import (
    GuidedStrategy,
    HasConfig,
    Pass,
    StrategyConfig,
    active_at,
    bare_pass,
    own_pass,
    weighted_mean_of,
)
from studio.composition.turns import in_role_order
from studio.pipelines.denoising import Branch, DenoiseRequest, FeatureUse, Step
from studio.pipelines.denoising.unet_parts import num_up_layers


class CMLoraConfig(StrategyConfig):
    """Settings of `cmlora`."""

    refresh_interval: Annotated[Int, Field(ge=1)] | Literal["dominant"] = Field(
        default=4,
        description="For how many steps a kept feature may stand; 1: nothing is kept, as in composite. dominant: until its "
        "adapter leads again, as in the paper, which draws in 220 steps.",
    )
    turns: Annotated[Int, Field(ge=1)] | Literal["non-uniform"] = Field(
        default="non-uniform",
        description="After how many steps the next adapter leads; non-uniform: 2, 3 and again 2, by the paper's parts of the "
        "schedule.",
    )
    weights: Literal["decaying", "constant", "equal"] = Field(
        default="decaying",
        description="decaying: the leader counts more than the others, at every change less so. constant: always as much as at "
        "first (the published code). equal: all alike.",
    )
    frequencies: Literal["measured", "roles"] = Field(
        default="measured",
        description="Which adapters are of low frequency. measured: those whose change is coarser than the picture. roles: "
        "backgrounds.",
    )
    phases: Literal["offline", "online"] = Field(
        default="offline",
        description="When those of low frequency come in. offline: at switch_at. online: when the latents' own high frequencies "
        "have fallen below switch_below.",
    )
    switch_at: Share = Field(default=PAPERS_SWITCH, description="With offline phases: where on the noise schedule, 0 to 1.")
    switch_below: Annotated[Float, Field(gt=0.0)] = Field(default=0.4, description="With online phases: the paper's g.")
    leader: Literal["always", "once"] = Field(
        default="always",
        description="When the leader runs in full. always: at each step of its turn. once: at the first (the published code).",
    )
    depth: Annotated[Int, Field(ge=1)] | None = Field(
        default=None,
        description="How many layers next to the output run with a kept feature; by default all but one of the last block's: 2 "
        "on SD1.5 and SDXL, as published, and 1 on the embedded model.",
    )


class CMLora(HasConfig[CMLoraConfig]):
    """Composite with a leader and kept features."""

    name: ClassVar[str] = "cmlora"
    title: ClassVar[str] = "one adapter leads, the others reuse deep features: composite at about half its cost (CMLoRA)"
    uses_regions: ClassVar[bool] = False
    Config = CMLoraConfig

    def build(self, scene: Scene, config: CMLoraConfig) -> CMLoraStrategy:
        """A pass per adapter, most of them short."""
        require_entries(scene, self.name)
        return CMLoraStrategy(scene, config)


class CMLoraStrategy(GuidedStrategy):
    """As many passes as there are active adapters. `high` and `low`: indices of the adapters of either kind."""

    def __init__(self, scene: Scene, config: CMLoraConfig) -> None:
        super().__init__(scene.request.guidance_scale)
        self.config = config
        self.concepts = scene.concepts
        self.high, self.low = split_by_frequency(scene, config.frequencies)
        unet = scene.base.unet
        self.depth = default_depth(unet) if config.depth is None else min(config.depth, num_up_layers(unet))
        self._own = [own_pass(scene, concept) for concept in self.concepts]
        self._bare = bare_pass(scene)
        self._begin()

    def _begin(self) -> None:
        config = self.config
        self._dominance = Dominance(self.high, self.low, refresh=config.refresh_interval, leads_fresh=config.leader == "always")
        self._turns: dict[int, tuple[list[int], Turn]] = {}
        self._is_early = True

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Begin the timetable anew."""
        self._begin()
        return super().prepare(request, latents)

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        """Look at them, where they decide the phase."""
        if self.config.phases == "online" and self._is_early:
            self._is_early = not self._turns or late_measure(latents) >= self.config.switch_below
        return latents

    def turn(self, step: Step) -> tuple[list[int], Turn] | None:
        """Who is active, and what they do; None where nobody is. Steps come in order, each any number of times."""
        if step.index not in self._turns:
            chosen = {id(concept) for concept in active_at(self.concepts, self.progress(step))}
            active = [index for index, concept in enumerate(self.concepts) if id(concept) in chosen]
            if not active:
                return None
            is_early = self._is_early if self.config.phases == "online" else self.progress(step) < self.config.switch_at
            is_turn = step.index in turn_steps(step.count, self.config.turns)
            self._turns[step.index] = (active, self._dominance.step(active, is_turn=is_turn, is_early=is_early))
        return self._turns[step.index]

    def passes(self, step: Step) -> Sequence[Pass]:
        """Those of the active adapters."""
        found = self.turn(step)
        return [self._bare] if found is None else [self._own[index] for index in found[0]]

    def branches(self, step: Step) -> Sequence[Branch]:
        """The same, each with its features, one for either half of the guidance."""
        found, branches = self.turn(step), super().branches(step)
        if found is None or self.config.refresh_interval == 1:
            return branches
        active, turn = found
        halves = ("negative", "positive") if self.is_guided else ("positive",)
        uses = [FeatureUse((index, half), self.depth, index in turn.fresh) for index in active for half in halves]
        return [replace(branch, features=use) for branch, use in zip(branches, uses, strict=True)]

    def fold(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """1/N Σ wₙεₙ: the mean, with the leader's weight."""
        found = self.turn(step)
        if found is None:
            return super().fold(step, predictions)
        active, turn = found
        if self.config.weights == "equal":
            return weighted_mean_of(predictions, [1.0] * len(active))
        leader = active.index(turn.dominant)
        decays = self.config.weights == "decaying"
        return weighted_mean_of(predictions, dominant_weights(len(active), leader, turn.change, decays=decays))


def split_by_frequency(scene: Scene, by: Literal["measured", "roles"]) -> tuple[list[int], list[int]]:
    """Indices of the scene's concepts of high and of low frequency, each in the order of roles, in which they lead."""
    positions = {id(concept): index for index, concept in enumerate(scene.concepts)}
    ordered = [positions[id(concept)] for concept in in_role_order(scene.concepts)]
    high = [index for index in ordered if len(ordered) == 1 or _is_high(scene, scene.concepts[index], by)]
    return high, [index for index in ordered if index not in high]


def _is_high(scene: Scene, concept: Concept, by: Literal["measured", "roles"]) -> bool:
    return concept.role != "background" if by == "roles" else profile_of(scene, concept).band == "high"


def default_depth(unet: Any) -> int:
    """All layers of the UNet's last block but one: what runs with a kept feature in the published code."""
    return max(1, len(unet.up_blocks[-1].resnets) - 1)
