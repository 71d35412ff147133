"""Plans on tiny bases, for tests of composition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from studio.composition.drawing import Compiled, compile_scene
from studio.composition.plan import CompositionPlan
from studio.composition.plan_files import plan_from_values
from studio.composition.scene import Scene, make_scene
from studio.pipelines.adapters import Adapter, AdapterInfo
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import DenoiseRequest, Strategy, denoise, make_scheduler
from studio.pipelines.generation import initial_noise
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.tiny_models import TinyModel

PROMPT = "a cat, a dog"
"""Short: the tiny tokenizers have a token for each letter."""


def tiny_of(base: BaseModel) -> TinyModel:
    """The base as the tiny model that adapters are made for."""
    return TinyModel(base.family.name, base.unet, base.vae, base.text_encoders, base.tokenizers, base.scheduler)  # type: ignore[arg-type]


def lora(base: BaseModel, seed: int, rank: int = 2, trigger: str | None = None, **options: Any) -> Adapter:
    """A random LoRA on all layers of the UNet and the text encoders."""
    made = random_adapter(tiny_of(base), rank=rank, seed=seed, **options)
    return replace(made, info=AdapterInfo(name=f"lora-{seed}", family=base.family.name, trigger=trigger))


def kronecker(base: BaseModel, seed: int) -> Adapter:
    """A random Kronecker adapter on the UNet."""
    return random_kronecker(tiny_of(base), seed=seed)


def plan_for(num_entries: int, **values: Any) -> CompositionPlan:
    """A small plan with so many entries; `entries` may give more of each."""
    entries = values.pop("entries", [{}] * num_entries)
    given = [{"adapter": f"{number}.safetensors"} | entry for number, entry in enumerate(entries, start=1)]
    defaults: dict[str, Any] = {"prompt": PROMPT, "entries": given, "steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64}
    return plan_from_values(defaults | values)


def scene_for(base: BaseModel, adapters: Sequence[Adapter], **values: Any) -> Scene:
    """A scene with these adapters."""
    return make_scene(plan_for(len(adapters), **values), base, adapters)


QUICK_SETTINGS: dict[str, dict[str, Any]] = {"ziplora": {"learning_steps": 1, "sample_steps": 1}}
"""For tests that name a strategy and want its picture, not its quality."""


def compiled_for(base: BaseModel, adapters: Sequence[Adapter], strategy: Any, **values: Any) -> Compiled:
    """The same, with a strategy; one that is only named is made quick where it learns."""
    if isinstance(strategy, str):
        strategy = {"name": strategy} | QUICK_SETTINGS.get(strategy, {})
    return compile_scene(scene_for(base, adapters, strategy=strategy, **values))


def latents_of(compiled: Compiled, strategy: Strategy | None = None) -> Tensor:
    """The latents of all pictures of a plan, in one batch."""
    scene = compiled.scene
    request, base = scene.request, scene.base
    generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
    asked = DenoiseRequest(
        noise=initial_noise(base, generators, request.height, request.width),
        height=request.height,
        width=request.width,
        scheduler=make_scheduler(base.scheduler, request.scheduler),
        num_steps=request.steps,
        generators=generators,
    )
    return denoise(base, asked, compiled.strategy if strategy is None else strategy)


def drawn(base: BaseModel, adapters: Sequence[Adapter], strategy: Any, **values: Any) -> Tensor:
    """Latents of a plan with these adapters and this strategy."""
    return latents_of(compiled_for(base, adapters, strategy, **values))
