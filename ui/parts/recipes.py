"""How a picture was asked for: read back from the picture itself, from the library, or from a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.pipelines.errors import StudioError
from studio.service import GenerateSpec, Studio


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a picture.

    Attributes:
        adapters: (id in the library, strength).
        start, control: pictures that decided it besides words, by their hashes, as `PictureRecord.steered` has them.
    """

    prompt: str
    negative: str = ""
    adapters: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    locked: bool = True
    num_images: int = 1
    steps: int = 30
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    base: str = "embedded"
    start: Mapping[str, Any] | None = None
    control: Mapping[str, Any] | None = None

    @classmethod
    def of_spec(cls, spec: GenerateSpec) -> Recipe:
        """Of a job; its seed is free, as it is for the next one."""
        return cls(
            prompt=spec.prompts[0],
            negative=spec.negative_prompt,
            adapters=tuple((choice.adapter, choice.strength) for choice in spec.adapters),
            seed=0 if spec.seed is None else spec.seed,
            locked=False,
            num_images=spec.num_images,
            steps=spec.steps,
            guidance=spec.guidance_scale,
            width=spec.width,
            height=spec.height,
            scheduler=spec.scheduler,
            base=spec.base,
            start=None if spec.start is None else spec.start.model_dump(exclude_none=True),
            control=None if spec.control is None else spec.control.model_dump(exclude_none=True),
        )

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Recipe:
        """Of what a picture says about itself."""
        uses = [each for each in record.get("adapters", ()) if each.get("sha256")]
        adapters = tuple((str(each["sha256"]), float(each.get("strength", 1.0))) for each in uses)
        base = record.get("base")
        return cls(
            prompt=str(record.get("prompt", "")),
            negative=str(record.get("negative_prompt", "")),
            adapters=adapters,
            seed=int(record.get("seed", 0)),
            steps=int(record.get("steps", 30)),
            guidance=record.get("guidance_scale"),
            width=record.get("width"),
            height=record.get("height"),
            scheduler=record.get("scheduler"),
            base=str(base) if isinstance(base, str) and base else "embedded",
            **{key: each for key, each in dict(record.get("steered") or {}).items() if key in ("start", "control")},
        )


def recipe_of_file(studio: Studio, path: str) -> Recipe | None:
    """What a picture's file says; None if it says nothing of this studio's. Raises ImageError for what is no picture."""
    record = studio.recipe(path)
    return None if record is None else Recipe.of_record(record)


def recipe_of_item(studio: Studio, item_id: str) -> Recipe | None:
    """The same for a picture of the library."""
    try:
        item = studio.item(item_id)
        return recipe_of_file(studio, str(item.path))
    except StudioError:
        return None
