"""Between what people see and what the denoiser works on: prompts to features, pictures to latents and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from studio.pipelines.base_model import BaseModel


@dataclass(frozen=True, eq=False)
class TextCondition:
    """What the UNet is told about a batch of prompts.

    Attributes:
        prompt_embeds: features per token, `[B, T, D]`.
        pooled: one vector per prompt, `[B, P]`, for SDXL; None for the others.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def rows(self, indices: Sequence[int]) -> TextCondition:
        """The prompts at `indices`, in that order, repeats allowed."""
        chosen = list(indices)
        return TextCondition(self.prompt_embeds[chosen], None if self.pooled is None else self.pooled[chosen])

    @staticmethod
    def cat(conditions: Sequence[TextCondition]) -> TextCondition:
        """Several batches, one after the other, as one."""
        pooled = [condition.pooled for condition in conditions if condition.pooled is not None]
        prompt_embeds = torch.cat([condition.prompt_embeds for condition in conditions])
        return TextCondition(prompt_embeds, torch.cat(pooled) if pooled else None)


def encode_text(base: BaseModel, prompts: Sequence[str]) -> TextCondition:
    """Encode `prompts` (B of them) as diffusers' pipelines do, with gradients when they are enabled.

    SD1.5, SD2 and the embedded model: the last layer after the final layer norm. SDXL: the last layer but one of both
    encoders, side by side, and the second one's projection as the pooled vector. Text beyond the tokenizer's length is
    cut off.
    """
    features: list[Tensor] = []
    pooled: Tensor | None = None
    for facts, tokenizer, encoder in zip(base.family.text_encoders, base.tokenizers, base.text_encoders, strict=True):
        output = encoder(token_ids(tokenizer, prompts).to(base.device), output_hidden_states=facts.penultimate)
        features.append(output.hidden_states[-2] if facts.penultimate else output[0])
        if facts.projection:
            pooled = output[0]
    return TextCondition(torch.cat(features, dim=-1), pooled)


def encode_negative(base: BaseModel, prompt: str, batch: int) -> TextCondition:
    """Encode the negative prompt, `batch` times; none at all is zeros where the model was trained with zeros (SDXL)."""
    condition = encode_text(base, [prompt]).rows([0] * batch)
    if prompt or not base.zero_empty_negative:
        return condition
    pooled = None if condition.pooled is None else torch.zeros_like(condition.pooled)
    return TextCondition(torch.zeros_like(condition.prompt_embeds), pooled)


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids `[B, model_max_length]`, padded and cut off at the end."""
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = tokens.input_ids
    return ids


def num_tokens_cut_off(base: BaseModel, prompt: str) -> int:
    """How many of the prompt's tokens are beyond what the text encoder takes; 0 if it fits."""
    tokenizer = base.tokenizers[0]
    # Not by calling the tokenizer, which warns about long texts.
    num_tokens = len(tokenizer.backend_tokenizer.encode(prompt).ids)
    return max(0, num_tokens - int(tokenizer.model_max_length))


@torch.no_grad()
def encode_images(base: BaseModel, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents `[B, C, h, w]` of pictures `[B, 3, H, W]` in -1..1, scaled as the denoiser expects them.

    Args:
        generator: for AutoencoderKL, which draws from a distribution; a CPU generator gives the same draw on any device.
    """
    encoded = base.vae.encode(pixels.to(base.device, _vae_dtype(base)))  # type: ignore[operator]
    # AutoencoderTiny has one answer, AutoencoderKL a distribution of them.
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample(generator)
    scale, shift = _scaling(base.vae)
    return (latents.to(base.dtype) - shift) * scale


@torch.no_grad()
def decode_latents(base: BaseModel, latents: Tensor) -> Tensor:
    """Pictures `[B, 3, H, W]` in 0..1, float32, of scaled latents `[B, C, h, w]`."""
    scale, shift = _scaling(base.vae)
    unscaled = latents / scale + shift
    pixels: Tensor = base.vae.decode(unscaled.to(base.device, _vae_dtype(base)), return_dict=False)[0]  # type: ignore[operator]
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def add_time_ids(
    base: BaseModel,
    batch: int,
    height: int,
    width: int,
    *,
    original_size: tuple[int, int] | None = None,
    crop_top_left: tuple[int, int] = (0, 0),
) -> Tensor | None:
    """SDXL's size conditioning `[B, 6]`: original height and width, crop's top and left, height and width; else None.

    Args:
        height, width: of the picture the UNet works on, in pixels. original_size: of the photo before it was scaled.
    """
    if not any(facts.projection for facts in base.family.text_encoders):
        return None
    numbers = [*(original_size or (height, width)), *crop_top_left, height, width]
    return torch.tensor([numbers] * batch, dtype=base.dtype, device=base.device)


def _scaling(vae: Any) -> tuple[float, float]:
    shift = vae.config.get("shift_factor")
    return float(vae.config.scaling_factor), 0.0 if shift is None else float(shift)


def _vae_dtype(base: BaseModel) -> torch.dtype:
    """The VAE's type; one that overflows in half precision (SDXL's) is moved to float32 first."""
    vae: Any = base.vae
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.to(torch.float32)
    dtype: torch.dtype = vae.dtype
    return dtype
