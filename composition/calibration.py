"""Strengths that mean the same for every adapter: how far an adapter moves pictures, measured, and the way back to its slider.

The effect of a strength s is e(s) = d(s) / d₀. d(s) is the distance that a scorer sees between pictures with and without the
adapter, same words, same seeds; d₀ is its distance between the base model's own pictures of the same words. So 1 means: as
different from the base's picture as two of the base's pictures are from each other. A calibrated strength c stands for the
slider s with e(s) = c · `UNIT`, whatever the adapter's type, rank and scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from studio.pipelines.adapters import Adapter, Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.scoring import Scorer

UNIT = 1.0
"""The effect of a calibrated strength of 1."""

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Sliders that are measured; between them the curve is a line, and below the first one too."""

SCENES = ("{}", "a photo of {}", "{} in the snow", "{} on a white background")
PLAIN_SUBJECT = "a house"
"""What is drawn with an adapter that answers to no words, such as a style."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is drawn to measure an adapter: every scene with every seed, at every strength."""

    num_seeds: int = 3
    steps: int = 20
    strengths: tuple[float, ...] = STRENGTHS


@dataclass(frozen=True)
class EffectCurve:
    """Effects by strength, (0, 0) first; both rise, and effects at least do not fall."""

    strengths: tuple[float, ...]
    effects: tuple[float, ...]

    def effect_of(self, strength: float) -> float:
        """e(s), a line between the points; beyond the last one its effect."""
        for index in range(1, len(self.strengths)):
            left, right = self.strengths[index - 1], self.strengths[index]
            if strength <= right:
                share = (strength - left) / (right - left)
                return self.effects[index - 1] + share * (self.effects[index] - self.effects[index - 1])
        return self.effects[-1]

    def strength_for(self, effect: float) -> float | None:
        """The smallest s with e(s) = `effect`; None if no measured strength reaches it."""
        if effect <= 0.0:
            return 0.0
        for index in range(1, len(self.strengths)):
            low, high = self.effects[index - 1], self.effects[index]
            if effect <= high:
                left, right = self.strengths[index - 1], self.strengths[index]
                return left + (effect - low) / (high - low) * (right - left)
        return None

    def calibrated(self, strength: float, title: str) -> float:
        """The slider that a calibrated strength stands for.

        Raises:
            UserError: it is negative, or the adapter has no such effect at any strength that was measured.
        """
        if strength < 0.0:
            raise UserError(f"{title}: a calibrated strength is 0 or more, not {strength:g}; use strength_unit: raw.")
        found = self.strength_for(strength * UNIT)
        if found is None:
            raise UserError(
                f"{title}: its effect is {self.effects[-1] / UNIT:.2f} at the most, at strength {self.strengths[-1]:g}; a "
                f"calibrated strength of {strength:g} is out of its reach."
            )
        return found


def rising(strengths: Sequence[float], effects: Sequence[float]) -> EffectCurve:
    """The curve through (0, 0) and the points that does not fall, by least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for effect in effects:
        blocks.append((max(effect, 0.0), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (high, first), (low, second) = blocks[-2:]
            blocks[-2:] = [((high * first + low * second) / (first + second), first + second)]
    flat = [value for value, count in blocks for _ in range(count)]
    return EffectCurve((0.0, *strengths), (0.0, *flat))


def measure(
    base: BaseModel,
    adapter: Adapter,
    scorer: Scorer,
    measuring: Measuring,
    on_step: Callable[[int, int], None] | None = None,
) -> EffectCurve:
    """Draw an adapter's pictures at every strength, and see how far they are from the base model's.

    Raises:
        UserError: the base's pictures are all alike to the scorer, so that there is nothing to measure by.
    """
    prompts = scenes_of(adapter)
    total = (1 + len(measuring.strengths)) * len(prompts) * measuring.num_seeds
    done = 0

    def draw(routes: Sequence[Route]) -> list[Image.Image]:
        nonlocal done
        images = generate(base, _request(prompts, measuring), routes, batch_size=len(prompts) * measuring.num_seeds)
        done += len(images)
        if on_step is not None:
            on_step(done, total)
        return images

    ready = adapter.to(base.device, base.dtype)
    bare = draw(())
    noun = adapter.info.class_noun
    unit = _mean([_distance(scorer, *pair, noun) for pair in _of_same_words(bare, measuring.num_seeds)])
    if unit <= 0.0 or not math.isfinite(unit):
        raise UserError("The base model's pictures are all alike to the scorer, so effects cannot be measured by it.")
    effects = []
    for strength in measuring.strengths:
        images = draw((Route(ready, strength),))
        effects.append(_mean([_distance(scorer, *pair, noun) for pair in zip(images, bare, strict=True)]) / unit)
    return rising(measuring.strengths, effects)


def scenes_of(adapter: Adapter) -> list[str]:
    """The words that an adapter is measured with: its own, in a few places."""
    trigger = adapter.info.trigger
    return [scene.format(PLAIN_SUBJECT if trigger is None else f"a {trigger}") for scene in SCENES]


def _request(prompts: Sequence[str], measuring: Measuring) -> GenerationRequest:
    """All seeds of the first prompt, then of the next."""
    return GenerationRequest(
        prompts=tuple(prompt for prompt in prompts for _ in range(measuring.num_seeds)),
        seeds=tuple(seed for _ in prompts for seed in range(measuring.num_seeds)),
        steps=measuring.steps,
    )


def _of_same_words(images: Sequence[Image.Image], num_seeds: int) -> list[tuple[Image.Image, Image.Image]]:
    """Every picture and the next one of the same prompt, the last and the first."""
    return [
        (images[start + index], images[start + (index + 1) % num_seeds])
        for start in range(0, len(images), num_seeds)
        for index in range(num_seeds)
    ]


def _distance(scorer: Scorer, image: Image.Image, other: Image.Image, noun: str | None) -> float:
    return 1.0 - float(scorer.identity([image], [other], noun)[0])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
