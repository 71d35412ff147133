"""What a composition strategy is, and the part that nearly all of them share: guided passes, and how to fold them.

A kind of strategy (one file in `strategies/`) has a name, a frozen `Config` and `build`, which turns a scene into the
`Strategy` that the denoising loop asks. Most only say which passes a step takes and how to fold their predictions;
`GuidedStrategy` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from studio.composition.plan_sentences import settings_sentences
from studio.composition.scene import Concept, Scene
from studio.pipelines.adapters import Route
from studio.pipelines.base_model import TextCondition
from studio.pipelines.denoising import Branch, DenoiseRequest, Step, Strategy
from studio.pipelines.errors import ConfigError


class StrategyConfig(BaseModel):
    """Settings of a strategy: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


ConfigT = TypeVar("ConfigT", bound=StrategyConfig)


class StrategyKind(Protocol[ConfigT]):
    """One way to bring adapters together.

    Attributes:
        name: in plans and on the command line. title: one line for help texts.
        uses_regions: whether entries may have a region.
        Config: its settings, with an explanation each.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    uses_regions: ClassVar[bool]
    Config: type[ConfigT]

    def build(self, scene: Scene, config: ConfigT) -> Strategy:
        """The strategy for one scene. It serves any number of batches, one after the other; `prepare` begins each.

        Raises:
            UserError: the scene is none that it can draw; the sentence names the entry.
        """
        ...


def configured(kind: StrategyKind[Any], settings: Mapping[str, Any]) -> Any:
    """The kind's `Config` of plain settings; `ConfigError` with a sentence for each thing that is wrong."""
    try:
        return kind.Config.model_validate(dict(settings))
    except ValidationError as error:
        problems = settings_sentences(error.errors(include_url=False), kind.Config, kind.name)
    raise ConfigError("\n".join(problems))


@dataclass(frozen=True, eq=False)
class Pass:
    """One way to see the picture: a prompt, a negative prompt (one row each) and the adapters that act in the denoiser.

    Keep the object, or at least `routes`, from step to step: passes with the same `routes` object run as one batch.
    """

    positive: TextCondition
    negative: TextCondition
    routes: tuple[Route, ...] = ()


class GuidedStrategy(Strategy):
    """Passes with and without the prompt, folded apart and then guided (Ho and Salimans 2022).

    A subclass gives `passes`, and `fold` if there may be more than one. Without guidance (scale 1 or less) there is no pass
    without the prompt.
    """

    def __init__(self, guidance_scale: float) -> None:
        self.guidance_scale = guidance_scale
        self._num_train_timesteps = 1000
        self._rows: dict[tuple[int, int], tuple[TextCondition, TextCondition]] = {}
        self._batch = 1

    @property
    def is_guided(self) -> bool:
        """Whether there are passes without the prompt."""
        return self.guidance_scale > 1.0

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        """Take note of the batch and of the noise schedule's length."""
        self._num_train_timesteps = int(request.scheduler.config.num_train_timesteps)
        self._batch = len(latents)
        self._rows.clear()
        return latents

    def progress(self, step: Step) -> float:
        """Where on the noise schedule the step is, whatever the number of steps: 0 is pure noise, 1 the finished picture."""
        return 1.0 - (float(step.timestep) + 1.0) / self._num_train_timesteps

    def passes(self, step: Step) -> Sequence[Pass]:
        """The passes of this step, at least one."""
        raise NotImplementedError

    def fold(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """One prediction of those of the passes, all with or all without the prompt, in the passes' order."""
        (only,) = predictions
        return only

    def branches(self, step: Step) -> Sequence[Branch]:
        """Each pass without and with the prompt."""
        found: list[Branch] = []
        for each in self.passes(step):
            negative, positive = self._repeated(each)
            found += [Branch(negative, each.routes)] if self.is_guided else []
            found.append(Branch(positive, each.routes))
        return found

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        """Fold, then guide: u + scale · (c − u)."""
        if not self.is_guided:
            return self.fold(step, predictions)
        unconditional, conditional = self.fold(step, predictions[0::2]), self.fold(step, predictions[1::2])
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _repeated(self, each: Pass) -> tuple[TextCondition, TextCondition]:
        """The pass's negative and positive text, a row per picture."""
        key = (id(each.negative), id(each.positive))
        if key not in self._rows:
            rows = [0] * self._batch
            self._rows[key] = (each.negative.rows(rows), each.positive.rows(rows))
        return self._rows[key]


class ConceptRoutes:
    """The routes of any set of concepts, made once, so that equal sets are one object."""

    def __init__(self, *, masks: bool = True) -> None:
        self._masks = masks
        self._made: dict[tuple[int, ...], tuple[Route, ...]] = {}

    def of(self, concepts: Sequence[Concept]) -> tuple[Route, ...]:
        """Their routes in the denoiser."""
        key = tuple(id(concept) for concept in concepts)
        if key not in self._made:
            routes = (concept.route(denoiser=True, mask=self._masks) for concept in concepts)
            self._made[key] = tuple(route for route in routes if route is not None)
        return self._made[key]


def active_at(concepts: Sequence[Concept], progress: float) -> list[Concept]:
    """Those whose time on the noise schedule it is; at the very end also those that stay to the end."""
    return [
        concept
        for concept in concepts
        if concept.entry.active_from <= progress and (progress < concept.entry.active_to or concept.entry.active_to == 1.0)
    ]


def own_pass(scene: Scene, concept: Concept, *, masks: bool = True) -> Pass:
    """The pass in which one concept acts alone, with its own words."""
    route = concept.route(denoiser=True, mask=masks)
    return Pass(
        scene.condition(scene.own_prompt(concept), [concept]),
        scene.negative(scene.own_negative(concept), [concept]),
        () if route is None else (route,),
    )


def bare_pass(scene: Scene) -> Pass:
    """The pass of the base model alone."""
    return Pass(scene.condition(scene.plan.prompt), scene.negative(scene.plan.negative_prompt))


class HasConfig(Generic[ConfigT]):
    """For kinds: `Config` as a class attribute that a type checker knows."""

    Config: type[ConfigT]


def mean_of(predictions: Sequence[Tensor]) -> Tensor:
    """Their mean, built up one by one: that of equal tensors is the tensor itself, to the last bit."""
    mean = predictions[0]
    for count, prediction in enumerate(predictions[1:], start=2):
        mean = mean + (prediction - mean) / count
    return mean


def weighted_mean_of(predictions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wₙ·predictionₙ / Σ wₙ, built up one by one: with equal weights it is `mean_of`, to the last bit; all zero count as equal.

    Args:
        weights: one per prediction, none negative.
    """
    if len(set(weights)) == 1:
        return mean_of(predictions)
    chosen = [(prediction, weight) for prediction, weight in zip(predictions, weights, strict=True) if weight > 0]
    mean, total = chosen[0]
    for prediction, weight in chosen[1:]:
        total += weight
        mean = mean + (prediction - mean) / (total / weight)
    return mean
