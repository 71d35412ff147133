"""What scorers say, and the one interface behind which the embedded referees and real CLIP and DINOv2 models stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Box: TypeAlias = tuple[float, float, float, float]
Picture: TypeAlias = Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object found in a picture. The box is (x0, y0, x1, y1) in fractions of the picture."""

    class_name: str
    score: float
    box: Box
    colour: str
    colour_score: float
    pattern: str
    pattern_score: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a referee sees in a picture: objects, best first, and what holds for the whole."""

    detections: tuple[Detection, ...]
    background: str
    background_score: float
    style: str
    style_score: float


@dataclass(frozen=True, kw_only=True)
class PromptScore:
    """How far a picture shows what a prompt says.

    Attributes:
        score: what `prompt_fidelity` returns: `checklist` where the prompt names something the scorer can check, else `cosine`.
        checklist: share of the prompt's checkable statements that hold, or None when it has none (or the scorer no checklist).
        cosine: cosine of the joint image-text embedding.
        items: every checked statement, for example ("object 1 colour", True).
    """

    score: float
    checklist: float | None
    cosine: float
    items: tuple[tuple[str, bool], ...]


class Scorer(Protocol):
    """Identity, prompt fidelity and style of pictures, `[N]` each; higher is better."""

    @property
    def name(self) -> str:
        """What tables call the scorer."""

    @property
    def content_hash(self) -> str:
        """SHA-256 of the weights behind the scores."""

    def identity(self, images: Sequence[Picture], references: Sequence[Picture], class_noun: str | None = None) -> Tensor:
        """Cosine of each image's identity embedding to the mean embedding of the references, `[N]`.

        `class_noun` names the thing to look at, where the scorer can find things by name.
        """

    def prompt_fidelity(self, images: Sequence[Picture], prompts: Sequence[str]) -> Tensor:
        """How far image i shows what prompt i says, `[N]`."""

    def style_agreement(self, images: Sequence[Picture], references: Sequence[Picture]) -> Tensor:
        """How alike each image's style is to the references' style, `[N]`, at most 1."""


def to_pixels(images: Sequence[Picture], size: int) -> Tensor:
    """Pictures of any size and mode as `[N, 3, size, size]` in 0..1; other aspects are squeezed, not cropped."""
    arrays = []
    for image in images:
        picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        arrays.append(np.asarray(picture))
    if not arrays:
        return torch.zeros(0, 3, size, size)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
