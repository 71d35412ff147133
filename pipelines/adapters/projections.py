"""Attention whose queries, keys and values are one product where adapters made them one, and gated units that keep less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from studio.kernels.gated import gated_gelu
from studio.kernels.library import gated_gelu as gated_gelu_operator
from studio.pipelines.adapters.sites import is_attention, is_gated_unit
from studio.pipelines.adapters.traced import behind, is_tracing, traced_outputs

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values), `[B, H, N, d]` each -> `[B, H, Q, d]`."""

PLAIN_PROCESSOR = "AttnProcessor2_0"


def project(attention: Any, names: Sequence[str], x: Tensor) -> tuple[Tensor, ...]:
    """What the projections `names` make of `x`, `[B, N, C]` each: as one product where `patched` made it one and nobody
    watches the single layers."""
    modules = [getattr(attention, name) for name in names]
    if is_tracing():
        return traced_outputs(modules, x)
    forwards = [behind(module.__dict__.get("forward")) for module in modules]
    site = getattr(forwards[0], "site", None)
    together = (
        site is not None
        and len(site.modules) == len(modules)
        and all(own is module and not _is_watched(module) for own, module in zip(site.modules, modules, strict=True))
    )
    if site is None or not together or not site.runs(x):
        return tuple(module(x) for module in modules)
    forwards[0].bring_up_to_date()
    outputs = site.run(x)
    return tuple(forward.finished(output, x) for forward, output in zip(forwards, outputs, strict=True))


class PatchedAttention:
    """diffusers' processor for torch's fused attention, without what its layers do not need.

    Args:
        plain: the processor that it stands for, which takes over where somebody wants more.
        attend: computes the attention; None for torch's own.
    """

    def __init__(self, plain: Any, attend: Attend | None = None) -> None:
        self.plain = plain
        self.attend = attend

    @classmethod
    def over(cls, attention: Any) -> PatchedAttention:
        """Over a layer's present processor; the same one each time, which a compiler knows again."""
        known = _known.get(attention)
        if known is None or known.plain is not attention.processor:
            known = _known[attention] = cls(attention.processor)
        return known

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """`[B, Q, C]`, and words `[B, T, D]`, to `[B, Q, C]`."""
        if attention_mask is not None or hidden_states.ndim != 3:
            result: Tensor = self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return result
        if encoder_hidden_states is None and not attn.is_cross_attention:
            parts = project(attn, ("to_q", "to_k", "to_v"), hidden_states)
        else:
            text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            parts = (attn.to_q(hidden_states), *project(attn, ("to_k", "to_v"), text))
        query, key, value = (split_heads(part, attn.heads) for part in parts)
        if self.attend is None:
            output = F.scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False)
        else:
            output = self.attend(query, key, value)
        return project_out(attn, output)


_known: WeakKeyDictionary[Any, PatchedAttention] = WeakKeyDictionary()


class GatedForward:
    """A GEGLU's forward that keeps its projection for the backward pass, and nothing else of that size."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """`[…, K]` to `[…, N]`."""
        projection = self.module.proj(hidden_states)
        return gated_gelu_operator(projection) if is_tracing() else gated_gelu(projection)


def split_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """`[B, N, H·d]` as `[B, H, N, d]`."""
    return tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def project_out(attention: Any, output: Tensor) -> Tensor:
    """`[B, H, Q, d]` through the output projection, `[B, Q, C]`."""
    joined = output.transpose(1, 2).flatten(2)
    result: Tensor = attention.to_out[1](attention.to_out[0](joined))
    return result


def plain_attentions(component: nn.Module) -> list[Any]:
    """The attention layers that compute as diffusers' plain processor does, with nothing around it."""
    return [module for module in component.modules() if is_attention(module) and _is_plain(module)]


def gated_units(component: nn.Module) -> list[nn.Module]:
    """The GEGLUs whose forward is their own."""
    return [module for module in component.modules() if is_gated_unit(module) and "forward" not in module.__dict__]


def _is_plain(attention: Any) -> bool:
    extras = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    if type(attention.processor).__name__ not in (PLAIN_PROCESSOR, PatchedAttention.__name__):
        return False
    bare = not attention.residual_connection and attention.rescale_output_factor == 1.0
    return bare and "processor" in attention.__dict__ and not any(getattr(attention, name, None) for name in extras)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
