"""What computes a UNet's attention, and whether it can do what is asked."""

from __future__ import annotations

from typing import Any

from studio.pipelines.denoising.attention.layers import attention_layers
from studio.pipelines.errors import BaseModelError

_UNDERSTOOD = ("AttnProcessor2_0", "PatchedAttention")
_ADVICE = {
    "XFormersAttnProcessor": "call disable_xformers_memory_efficient_attention() on the pipeline",
    "SlicedAttnProcessor": "call disable_attention_slicing() on the pipeline",
    "AttnProcessor": "call set_default_attn_processor() on the UNet",
    "FusedAttnProcessor2_0": "call unfuse_qkv_projections() on the pipeline",
}


def check_attention(unet: Any, needed_for: str) -> None:
    """`BaseModelError`, with the backend's name, unless the UNet's attention is torch's own everywhere.

    Backends bring processors of their own, which the studio would have to take out to read maps or to route words and
    places by region: flash, sage and xformers' kernels take no mask or show no maps, and an IP-Adapter would be lost.

    Args:
        needed_for: what the attention is needed for, as in "attention maps need".
    """
    for layer in attention_layers(unet):
        module: Any = unet.get_submodule(layer.name)
        name = type(module.processor).__name__
        if name not in _UNDERSTOOD:
            advice = _ADVICE.get(name, "put the UNet's default attention back with set_default_attn_processor()")
            raise BaseModelError(
                f"{needed_for} torch's own attention, and {layer.name} computes it with {name}: {advice}, or choose a strategy "
                f"without regions and attention maps."
            )
        if any(getattr(module, part, None) is not None for part in ("spatial_norm", "group_norm", "norm_q", "norm_cross")):
            raise BaseModelError(f"{needed_for} attention layers as in SD1.5 and SDXL; {layer.name} is built differently.")


def has_plain_attention(module: Any) -> bool:
    """Whether one attention layer computes with torch's own attention, so that its text may be prepared beforehand."""
    return type(module.processor).__name__ in _UNDERSTOOD
