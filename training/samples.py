"""Sample pictures on fixed prompts and seeds, and what a scorer makes of them."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from studio.pipelines.base_model import BaseModel
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.scoring import Scorer
from studio.training.checkpoint import output_errors
from studio.training.config import TrainConfig
from studio.training.config.words import fill_template
from studio.training.rng import preserved_rng
from studio.training.selection import CheckpointScore

THUMBNAIL_PIXELS = 96

SCORED_SEEDS = 2
"""Pictures per prompt where they are scored: means over one picture a prompt are too coarse to compare checkpoints by."""


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """The pictures that are drawn again and again while a run learns.

    Attributes:
        prompts: one per picture, with the token. class_prompts: the same without it, for the base model and the scorer.
        seeds: one per picture. size: side in pixels. steps, guidance_scale: of the sampler.
    """

    prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    size: int
    steps: int
    guidance_scale: float

    def __len__(self) -> int:
        return len(self.prompts)


def sample_plan(config: TrainConfig, base: BaseModel, seeds_per_prompt: int = 1) -> SamplePlan:
    """The plan of a resolved configuration: all prompts, and all again for further seeds; every picture has its own seed."""
    concept, run = config.concept, config.run
    assert run.sample_steps is not None and run.sample_guidance_scale is not None
    prompts = tuple(fill_template(template, concept.token, concept.class_noun) for template in run.sample_prompts)
    return SamplePlan(
        prompts=prompts * seeds_per_prompt,
        class_prompts=tuple(without_token(template, concept.class_noun) for template in run.sample_prompts) * seeds_per_prompt,
        seeds=tuple(run.seed + 1 + index for index in range(len(prompts) * seeds_per_prompt)),
        size=base.size,
        steps=run.sample_steps,
        guidance_scale=run.sample_guidance_scale,
    )


def without_token(template: str, class_noun: str) -> str:
    """A template with the class noun alone: what the prompt says in words that everyone knows."""
    if "{class_noun}" not in template:
        template = template.replace("{token}", "{class_noun}", 1)
    return " ".join(template.replace("{token}", "").replace("{class_noun}", class_noun).split())


def draw_samples(base: BaseModel, plan: SamplePlan, *, with_token: bool) -> list[Image.Image]:
    """Draw the plan's pictures with the model as it is now. The run's random states are the same afterwards."""
    request = GenerationRequest(
        prompts=plan.prompts if with_token else plan.class_prompts,
        seeds=plan.seeds,
        steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        height=plan.size,
        width=plan.size,
    )
    with preserved_rng():
        return generate(base, request)


def save_samples(images: Sequence[Image.Image], folder: Path) -> None:
    """Write `00.png`, `01.png` … Raises OutputError when that isn't possible."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            image.save(folder / f"{index:02d}.png")


def score_samples(
    scorer: Scorer,
    images: Sequence[Image.Image],
    plan: SamplePlan,
    step: int,
    class_noun: str,
    photos: Sequence[Image.Image],
    held_out: Image.Image | None,
) -> CheckpointScore:
    """Means over the samples: identity to the training photos and to the held-out one, and prompt fidelity."""
    with preserved_rng():
        fidelity = scorer.prompt_fidelity(images, plan.class_prompts).mean().item()
        to_photos = scorer.identity(images, photos, class_noun).mean().item()
        to_held_out = None if held_out is None else scorer.identity(images, [held_out], class_noun).mean().item()
    return CheckpointScore(step=step, prompt_fidelity=fidelity, identity_training=to_photos, identity_held_out=to_held_out)


def best_sample(scorer: Scorer, images: Sequence[Image.Image], photos: Sequence[Image.Image], class_noun: str) -> int:
    """Which sample looks most like the photos."""
    with preserved_rng():
        return int(scorer.identity(images, photos, class_noun).argmax())


def thumbnail_url(image: Image.Image) -> str:
    """A small PNG of `image` as a data URL, for an adapter file's header."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")
