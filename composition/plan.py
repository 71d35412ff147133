"""The plan of a composition: everything that decides a picture made with several adapters.

A plan is written by hand, by flags or by a page, as YAML or JSON (see `plan_files`), and it travels with every picture it
made. It is frozen: whoever wants another one makes a copy with `model_copy(update=…)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

Int = Annotated[int, Strict()]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Share = Annotated[Float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Strict(), Field(min_length=1)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

Role = Literal["subject", "clothing", "style", "background", "object"]
ROLES: tuple[Role, ...] = ("subject", "clothing", "style", "background", "object")
"""What an adapter does in a picture, in the order in which LoRA Switch found turns to work best."""

PLAN_VERSION = 1


class PlanPart(BaseModel):
    """A piece of a plan: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def explained(default: Any, text: str, **limits: Any) -> Any:
    """A field with its explanation."""
    return Field(default=default, description=text, **limits)


class Region(PlanPart):
    """Where on the canvas an adapter acts: a box or a mask."""

    box: tuple[Float, Float, Float, Float] | None = explained(
        None, "Left, top, right, bottom as fractions of the canvas: [0, 0, 0.5, 1] is the left half."
    )
    mask: Text | None = explained(None, "A grey picture of the canvas's aspect: white acts, black does not, grey acts partly.")
    mask_sha256: Hash | None = explained(None, "SHA-256 of the mask's file; checked where given.")
    soft_edge: Annotated[Float, Field(ge=0.0, le=0.5)] = explained(
        0.0, "Width of the inner edge over which it fades, as a fraction of the canvas's shorter side."
    )
    z: Int | None = explained(None, "Which of two overlapping regions is in front: the one with the higher number.")


class Entry(PlanPart):
    """One adapter and its part in the picture."""

    adapter: Text = explained(..., "The adapter's file; a relative path is looked up beside the plan's file first.")
    name: Text | None = explained(None, "What messages and tables call it; by default the file's name.")
    sha256: Hash | None = explained(None, "SHA-256 of the file; checked where given.")
    strength: Float = explained(1.0, "How strongly it acts: 0 is off, 1 is as trained.")
    role: Role | None = explained(None, "Its part in the picture; by default what its file says, else subject.")
    half: Literal["content", "style"] | None = explained(None, "Only this half of a B-LoRA.")
    words: Text | None = explained(None, "The words of the prompt that it is for; by default its trigger words.")
    occurrence: Annotated[Int, Field(ge=1)] = explained(1, "Which one, if the words stand in the prompt several times.")
    region: Region | None = explained(None, "Where on the canvas it acts; everywhere by default.")
    prompt: Text | None = explained(None, "A prompt of its own, where the strategy has passes or regions of their own.")
    negative_prompt: Annotated[str, Strict()] | None = explained(None, "The same for what to keep away from.")
    active_from: Share = explained(0.0, "From where on the noise schedule it acts: 0 is pure noise, 1 the finished picture.")
    active_to: Share = explained(1.0, "Until where it acts.")

    @property
    def title(self) -> str:
        """Its name, or its file's."""
        return self.name if self.name is not None else Path(self.adapter).stem


class StrategyChoice(BaseModel):
    """The strategy's name and whatever settings it has; the strategy itself says which there are."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    name: Text = "merge"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings as they were written."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class CompositionPlan(PlanPart):
    """What to draw, with which adapters, and how they come together."""

    version: Annotated[Int, Field(ge=1, le=PLAN_VERSION)] = explained(PLAN_VERSION, "Of this format.")
    base: Text = explained("embedded", "Base model: embedded, a diffusers folder, a checkpoint or a hub id.")
    base_sha256: Hash | None = explained(None, "SHA-256 of its weights; checked where given.")
    prompt: Text = explained(..., "What to draw.")
    negative_prompt: Annotated[str, Strict()] = explained("", "What to keep away from.")
    entries: tuple[Entry, ...] = explained((), "The adapters.")
    strength_unit: Literal["raw", "calibrated"] = explained(
        "raw", "What strengths mean: the slider itself, or a measured effect, the same for every kind of adapter."
    )
    strategy: StrategyChoice = explained(StrategyChoice(), "How they come together, with its settings.")
    seed: Annotated[Int, Field(ge=0, le=2**63 - 1)] = explained(0, "Of the first picture; further ones count up.")
    num_images: Annotated[Int, Field(ge=1, le=10_000)] = explained(1, "How many pictures.")
    steps: Annotated[Int, Field(ge=1, le=1000)] = explained(30, "Denoising steps.")
    guidance_scale: Float | None = explained(None, "How closely to follow the prompt; by default the family's.")
    scheduler: Text | None = explained(None, "Sampler: ddim, euler, euler_a or dpm++; by default the family's.")
    width: Annotated[Int, Field(ge=1)] | None = explained(None, "In pixels; by default the base model's.")
    height: Annotated[Int, Field(ge=1)] | None = explained(None, "In pixels; by default the base model's.")

    def title_of(self, index: int) -> str:
        """How sentences call entry number `index` (from 0): entry 2 (robot)."""
        return f"entry {index + 1} ({self.entries[index].title})"
