"""Adapters with random values, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from studio.pipelines.adapters import Adapter, AdapterInfo, new_kronecker, new_lora
from studio.pipelines.families import EMBEDDED, ModelFamily, family_named
from tests.support.tiny_models import TinyModel, tiny_embedded, tiny_sd15, tiny_sdxl

TINY_MODELS: Mapping[str, Callable[[], TinyModel]] = {"sd15": tiny_sd15, "sdxl": tiny_sdxl, "embedded": tiny_embedded}


def all_targets(family: ModelFamily) -> dict[str, str]:
    """Attention, feed-forwards, projections and convolutions of the UNet, and all layers of every text encoder."""
    return {"unet": EMBEDDED.adapter_targets} | {facts.component: EMBEDDED.text_encoder_targets for facts in family.text_encoders}


def random_adapter(
    model: TinyModel,
    *,
    rank: int = 4,
    alpha: float = 2.0,
    seed: int = 0,
    dora: bool = False,
    use_rslora: bool = False,
    targets: Mapping[str, str] | None = None,
    info: AdapterInfo | None = None,
) -> Adapter:
    """A LoRA or DoRA on `model` that changes its pictures visibly; the tensors do not require gradients."""
    family = family_named(model.family)
    generator = torch.Generator().manual_seed(seed)
    adapter = new_lora(
        model.components(),
        all_targets(family) if targets is None else targets,
        rank,
        alpha,
        generator=generator,
        dora=dora,
        use_rslora=use_rslora,
        info=AdapterInfo(name=f"random {seed}", family=family.name) if info is None else info,
    )
    for name, tensor in adapter.named_tensors().items():
        tensor.requires_grad_(False)
        if name.endswith(".up"):
            nn.init.normal_(tensor, 0.0, 0.1, generator=generator)
        if name.endswith(".magnitude"):
            tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return adapter


def random_kronecker(
    model: TinyModel, factors: tuple[int, int] = (4, 4), *, seed: int = 0, targets: Mapping[str, str] | None = None
) -> Adapter:
    """A Kronecker adapter on `model` that changes its pictures visibly; the tensors do not require gradients."""
    family = family_named(model.family)
    generator = torch.Generator().manual_seed(seed)
    adapter = new_kronecker(
        model.components(),
        {"unet": EMBEDDED.adapter_targets} if targets is None else targets,
        factors,
        generator=generator,
        info=AdapterInfo(name=f"random {seed}", family=family.name),
    )
    for name, tensor in adapter.named_tensors().items():
        tensor.requires_grad_(False)
        if name.endswith(".second"):
            nn.init.normal_(tensor, 0.0, 0.1, generator=generator)
    return adapter


def mixed_ranks(model: TinyModel, *, dora: bool = False, mixed_alphas: bool = True) -> Adapter:
    """Rank 4 with alpha 2 in attention, and rank 2 with alpha 3 (or 2) elsewhere."""
    attention = random_adapter(model, rank=4, alpha=2.0, seed=1, dora=dora)
    others = random_adapter(model, rank=2, alpha=3.0 if mixed_alphas else 2.0, seed=2, dora=dora)
    patches = {path: attention.patches[path] if "attn" in path.module else others.patches[path] for path in attention.patches}
    return replace(attention, patches=patches)
