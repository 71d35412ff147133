"""Whether an adapter changes what is fine in a picture or what is coarse, measured once and kept with the adapter.

CMLoRA (Zou et al. 2025, arXiv 2502.04923) looks at the amplitude of high frequencies over the denoising steps and finds two
kinds of adapters: those that raise it early (characters, clothing, styles, objects), and those that act on low ones, late
(backgrounds). Its published code then goes by the adapters' file names. Here each adapter is measured: what it changes in the
picture that the base model has in mind, at a few steps of a drawing. The yardstick is that picture itself: an adapter whose
change is finer than the picture is of high frequency.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from studio.composition.frequencies import high_mean, high_share, radial_profile
from studio.composition.merged import concept_prompt
from studio.composition.scene import Concept, Scene
from studio.composition.strategy import Pass
from studio.composition.trajectories import Seen, drawing_steps
from studio.pipelines.adapters import Adapter
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import UNetDenoiser, noise_level, split_prediction
from studio.pipelines.errors import StudioError
from studio.pipelines.files import atomic_write_json

Band = Literal["high", "low"]

FOLDER_VARIABLE = "STUDIO_PROFILES"
"""Environment variable with a folder in which profiles outlive the program; without it they are kept in memory."""

PROFILE_STEPS = 4
_FORMAT = "studio-frequency-profile-1"
_kept: dict[str, FrequencyProfile] = {}


@dataclass(frozen=True, kw_only=True)
class FrequencyProfile:
    """What one adapter at strength 1 does to one base model's pictures.

    Attributes:
        radial: amplitude of its change by radius, in rings of equal width, over the largest.
        high_share: share of its change's amplitude that is of high frequency. picture_share: the same of the base's picture.
        early, late: by how much it raises the mean amplitude of the prediction's high frequencies, relative to the base's, in
            the first and the second half of the steps (ΔH₀.₂; negative: it lowers it).
    """

    radial: tuple[float, ...]
    high_share: float
    picture_share: float
    early: float
    late: float

    @property
    def band(self) -> Band:
        """Its tag."""
        return "high" if self.high_share >= self.picture_share else "low"


def profile_of(scene: Scene, concept: Concept) -> FrequencyProfile:
    """The profile of a concept's adapter on the scene's base model: as kept, or measured now (`PROFILE_STEPS` steps)."""
    key = _key(concept.adapter, scene.base)
    found = _kept.get(key)
    if found is None:
        found = _read(key)
    if found is None:
        found = measure_profile(scene, concept)
        _write(key, found)
    _kept[key] = found
    return found


@torch.no_grad()
def measure_profile(scene: Scene, concept: Concept) -> FrequencyProfile:
    """Measure it, at strength 1, while the base model draws what the adapter is for."""
    prompt = concept_prompt(scene, concept)
    whole = replace(concept, entry=concept.entry.model_copy(update={"strength": 1.0}))
    route = whole.route(denoiser=True, mask=False)
    passes = [
        Pass(scene.condition(prompt), scene.negative("")),
        Pass(scene.condition(prompt, [whole]), scene.negative("", [whole]), () if route is None else (route,)),
    ]
    seen = drawing_steps(scene, passes, PROFILE_STEPS)
    pairs = [pair for pair in (_pictures(scene.base, step) for step in seen) if pair is not None]
    changes = torch.cat([changed - plain for plain, changed in pairs])
    pictures = torch.cat([plain for plain, _ in pairs])
    raised = [_raised(*step.predictions) for step in seen]
    half = len(raised) // 2
    return FrequencyProfile(
        radial=radial_profile(changes),
        high_share=high_share(changes),
        picture_share=high_share(pictures),
        early=sum(raised[:half]) / half,
        late=sum(raised[half:]) / (len(raised) - half),
    )


def _pictures(base: BaseModel, step: Seen) -> tuple[Tensor, Tensor] | None:
    """x₀ as the base and the adapter see it; None where a prediction of noise says nothing of it."""
    kind = UNetDenoiser(base).prediction_type
    alpha, sigma = noise_level(base.scheduler, step.timestep)
    try:
        first, second = (split_prediction(one, kind, step.latents, alpha, sigma)[0] for one in step.predictions)
    except ValueError:
        return None
    return first, second


def _raised(plain: Tensor, changed: Tensor) -> float:
    before = high_mean(plain)
    return high_mean(changed) / before - 1.0 if before > 0 else 0.0


def _key(adapter: Adapter, base: BaseModel) -> str:
    return f"{adapter.content_hash()[:32]}-{(base.content_hash or 'none')[:16]}"


def _path(key: str) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE, "")
    return Path(folder) / f"{key}.json" if folder else None


def _read(key: str) -> FrequencyProfile | None:
    """The profile on disk; None if there is none, or none that can be read: it is measured again then."""
    path = _path(key)
    if path is None or not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != _FORMAT:
            return None
        numbers = {name: float(values[name]) for name in ("high_share", "picture_share", "early", "late")}
        return FrequencyProfile(radial=tuple(float(number) for number in values["radial"]), **numbers)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(key: str, profile: FrequencyProfile) -> None:
    path = _path(key)
    if path is None:
        return
    try:
        atomic_write_json(path, {"format": _FORMAT, **asdict(profile)})
    except StudioError:
        return  # it saves time, and no picture depends on it
