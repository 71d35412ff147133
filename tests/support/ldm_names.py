"""The original LDM names of a diffusers model's weights: writes checkpoints as other tools distribute them, for tests.

Independent of the studio's own tables: written from the layout of CompVis/latent-diffusion and Stability's
generative-models, with diffusers' converter as the judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def ldm_unet(state: Mapping[str, Tensor], num_levels: int, layers: int = 2) -> dict[str, Tensor]:
    """UNet weights under their LDM names, `layers` residual blocks per level on the way down."""
    return {f"model.diffusion_model.{_unet_name(name, num_levels, layers)}": tensor for name, tensor in state.items()}


def _unet_name(name: str, num_levels: int, layers: int) -> str:
    module, _, leaf = name.rpartition(".")
    if module in _UNET_OUTER:
        return f"{_UNET_OUTER[module]}.{leaf}"
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.*)", name):
        row = 1 + int(match[1]) * (layers + 1) + (layers if match[2] == "downsamplers" else int(match[3]))
        return f"input_blocks.{row}.{_inside(match[2], match[4], False)}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        row = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{row}." + _inside(match[1], match[3], False).split(".", 1)[1]
    match = re.match(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.*)", name)
    assert match is not None, name
    row = int(match[1]) * (layers + 1) + (layers if match[2] == "upsamplers" else int(match[3]))
    # SD1.5's coarsest level and SDXL's finest have no attention; only the former also has an upsampler.
    sampler_second = match[1] == "0" and num_levels == 4
    return f"output_blocks.{row}.{_inside(match[2], match[4], sampler_second)}"


def _inside(kind: str, rest: str, sampler_second: bool) -> str:
    if kind == "attentions":
        return f"1.{rest}"
    if kind == "downsamplers":
        return f"0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"{1 if sampler_second else 2}.{rest}"
    part, _, leaf = rest.partition(".")
    return f"0.{_RESNET[part]}.{leaf}"


def ldm_vae(state: Mapping[str, Tensor], num_levels: int = 4) -> dict[str, Tensor]:
    """AutoencoderKL weights under their LDM names; attention weights as 1×1 convolutions, as they were."""
    return dict(_vae_entry(name, tensor, num_levels) for name, tensor in state.items())


def _vae_entry(name: str, tensor: Tensor, num_levels: int) -> tuple[str, Tensor]:
    new = name.replace("conv_norm_out", "norm_out")
    new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", new)
    new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
    new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{num_levels - 1 - int(m[1])}.block.{m[2]}", new)
    new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{num_levels - 1 - int(m[1])}.upsample", new)
    new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
    new = new.replace("conv_shortcut", "nin_shortcut")
    if "mid_block.attentions.0" in new:
        new = new.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            new = new.replace(f".{ours}.", f".{theirs}.")
        tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    return f"first_stage_model.{new}", tensor


def ldm_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """CLIP ViT-L weights as checkpoints hold them: transformers' old names under `prefix`, with the position ids."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    named = {f"{prefix}text_model.{name}": tensor for name, tensor in plain.items()}
    length = plain["embeddings.position_embedding.weight"].shape[0]
    return named | {f"{prefix}text_model.embeddings.position_ids": torch.arange(length)[None]}


def ldm_open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """OpenCLIP weights as SDXL's checkpoints hold them: one matrix for query, key and value, projection transposed."""
    named: dict[str, Tensor] = {f"{prefix}logit_scale": torch.tensor(1.0)}
    for name, tensor in state.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            named[f"{prefix}text_projection"] = tensor.T.contiguous()
        elif name.startswith("embeddings.token"):
            named[f"{prefix}token_embedding.weight"] = tensor
        elif name.startswith("embeddings.position"):
            named[f"{prefix}positional_embedding"] = tensor
        elif name.startswith("final_layer_norm"):
            named[prefix + name.replace("final_layer_norm", "ln_final")] = tensor
        elif ".q_proj." in name:
            parts = [state[_with_text_model(state, name.replace("q_proj", f"{letter}_proj"))] for letter in "qkv"]
            block = name.split(".")[2]
            named[f"{prefix}transformer.resblocks.{block}.attn.in_proj_{name.rpartition('.')[2]}"] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            new = name.replace("encoder.layers", "transformer.resblocks").replace("self_attn", "attn")
            for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("fc1", "c_fc"), ("fc2", "c_proj")):
                new = new.replace(ours, theirs)
            named[prefix + new] = tensor
    return named


def _with_text_model(state: Mapping[str, Tensor], name: str) -> str:
    return name if name in state else f"text_model.{name}"
