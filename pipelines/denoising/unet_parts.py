"""One explicit run of a UNet's parts, so that a pass can stop early or begin deep inside.

`run_unet` computes what diffusers' `UNet2DConditionModel.forward` does, bit for bit, part by part: with patches, hooks,
FreeU, ControlNet residuals and gradient checkpointing. What `forward` does not offer:

* stopping after a part. A pass that is made for its attention maps needs nothing behind the last layer that is captured;
* keeping the feature that enters the last few layers, and beginning a later pass there with it (Ma et al. 2024, DeepCache,
  arXiv 2312.00858): only the layers around the input and the output run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studio.pipelines.errors import BaseModelError

_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D")


@dataclass(frozen=True, eq=False)
class ControlResiduals:
    """What a ControlNet adds: to each skip connection, and to the middle.

    Attributes:
        down: one `[B, C, h, w]` for every skip connection, from the input on. middle: `[B, C, h, w]`.
    """

    down: Sequence[Tensor]
    middle: Tensor


@dataclass(frozen=True, eq=False)
class UNetRun:
    """What came of a run.

    Attributes:
        output: `[B, C, h, w]`; None if the run stopped before.
        deep_feature: what entered the last `depth` layers, `[B, C', h', w']`; None unless asked for.
    """

    output: Tensor | None
    deep_feature: Tensor | None


@dataclass(eq=False)
class _State:
    """Where a run is."""

    sample: Tensor
    embedding: Tensor
    text: Tensor
    skips: list[Tensor]
    deep_feature: Tensor | None = None


def run_unet(
    unet: Any,
    sample: Tensor,
    timestep: Tensor,
    text: Tensor,
    added: Mapping[str, Tensor] | None = None,
    *,
    control: ControlResiduals | None = None,
    stop_after: str | None = None,
    depth: int | None = None,
    deep_feature: Tensor | None = None,
) -> UNetRun:
    """Run a diffusers `UNet2DConditionModel` with the structure of SD1.5 or SDXL.

    Args:
        sample: `[B, C, h, w]`. timestep: `[]` or `[B]`. text: `[B, T, D]`. added: SDXL's `text_embeds` and `time_ids`.
        stop_after: name of the last part to run, one of `part_names`.
        depth: how many layers (pairs of a resnet and its attention) lie behind the deep feature, counted from the output:
            1 to `num_up_layers`. Asks for the feature, or says where the one given enters.
        deep_feature: of an earlier run with the same `depth`; the parts before it do not run.

    Raises:
        BaseModelError: the UNet has blocks of other kinds.
        ValueError: there is no such part or depth.
    """
    check_structure(unet)
    num_layers = num_up_layers(unet)
    if stop_after is not None and stop_after not in part_names(unet):
        raise ValueError(f"The UNet has no part {stop_after!r}.")
    if depth is not None and not 1 <= depth <= num_layers:
        raise ValueError(f"The deep feature can enter before the last 1 to {num_layers} layers, not {depth}.")
    if deep_feature is not None and depth is None:
        raise ValueError("A deep feature needs the depth at which it enters.")
    hook = getattr(unet, "_hf_hook", None)  # offloading brings the weights when `forward` is called, which it is not
    if hook is not None:
        hook.pre_forward(unet)
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    state = _State(sample, _embedding(unet, sample, timestep, text, added), text, [])
    state.deep_feature = deep_feature
    for name in _parts(unet, state, control, None if depth is None else num_layers - depth):
        if name == stop_after:
            return UNetRun(None, state.deep_feature)
    return UNetRun(state.sample, state.deep_feature)


def check_structure(unet: Any) -> None:
    """`BaseModelError`, with what is in the way, unless the UNet can be run by its parts."""
    blocks = [type(block).__name__ for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)]
    other = [name for name in blocks if name not in _BLOCKS]
    config = unet.config
    if config.addition_embed_type not in (None, "text_time") or config.class_embed_type or config.encoder_hid_dim_type:
        other.append("conditioning of another kind than SD1.5's and SDXL's")
    if other:
        raise BaseModelError(
            f"This UNet cannot be run part by part: it has {', '.join(dict.fromkeys(other))}. Choose a strategy that needs "
            f"neither attention maps nor cached features, or a base model with the structure of SD1.5 or SDXL."
        )


def num_up_layers(unet: Any) -> int:
    """Layers on the way up, each with a skip connection of its own."""
    return sum(len(block.resnets) for block in unet.up_blocks)


def part_names(unet: Any) -> tuple[str, ...]:
    """The parts in the order in which they run: module paths, from `conv_in` to `conv_out`."""
    names = ["conv_in"]
    for index, block in enumerate(unet.down_blocks):
        names += [f"down_blocks.{index}.{part}" for part in _layers_of(block)]
    names.append("mid_block.resnets.0")
    for layer in range(len(unet.mid_block.attentions)):
        names += [f"mid_block.attentions.{layer}", f"mid_block.resnets.{layer + 1}"]
    for index, block in enumerate(unet.up_blocks):
        names += [f"up_blocks.{index}.{part}" for part in _layers_of(block)]
    return (*names, "conv_out")


def _layers_of(block: nn.Module) -> list[str]:
    """The parts of a block on the way down or up."""
    attentions = getattr(block, "attentions", None)
    kinds = ("resnets",) if attentions is None else ("resnets", "attentions")
    names = [f"{kind}.{layer}" for layer in range(len(block.resnets)) for kind in kinds]  # type: ignore[arg-type]
    for samplers in ("downsamplers", "upsamplers"):
        names += [f"{samplers}.{index}" for index in range(len(getattr(block, samplers, None) or ()))]
    return names


def _embedding(unet: Any, sample: Tensor, timestep: Tensor, text: Tensor, added: Mapping[str, Tensor] | None) -> Tensor:
    """Time, and for SDXL size and pooled text: `[B, E]`."""
    embedding: Tensor = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), None)
    conditions = None if added is None else dict(added)
    addition = unet.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs=conditions)
    embedding = embedding if addition is None else embedding + addition
    return embedding if unet.time_embed_act is None else unet.time_embed_act(embedding)


def _parts(unet: Any, state: _State, control: ControlResiduals | None, cut: int | None) -> Iterator[str]:
    """Run one part after the other on `state`, with a halt after each that gives its name.

    Args:
        cut: the layer on the way up before which the deep feature enters, if there is one, or else is kept.
    """
    enters = state.deep_feature is not None
    num_skips = num_up_layers(unet) - (cut if enters and cut is not None else 0)
    forward_size = any(side % 2**unet.num_upsamplers for side in state.sample.shape[-2:])
    for name in _way_down(unet, state):
        yield name
        if enters and len(state.skips) == num_skips:
            break
    if control is not None:
        state.skips = [skip + residual for skip, residual in zip(state.skips, control.down, strict=not enters)]
    if state.deep_feature is not None:
        state.sample = state.deep_feature
    else:
        yield from _middle(unet, state)
        if control is not None:
            state.sample = state.sample + control.middle
    yield from _way_up(unet, state, cut, forward_size)
    if unet.conv_norm_out:
        state.sample = unet.conv_act(unet.conv_norm_out(state.sample))
    state.sample = unet.conv_out(state.sample)
    yield "conv_out"


def _way_down(unet: Any, state: _State) -> Iterator[str]:
    state.sample = unet.conv_in(state.sample)
    state.skips.append(state.sample)
    yield "conv_in"
    for index, block in enumerate(unet.down_blocks):
        attentions = getattr(block, "attentions", None)
        for layer, resnet in enumerate(block.resnets):
            state.sample = _resnet(block, resnet, state)
            if attentions is None:
                state.skips.append(state.sample)
            yield f"down_blocks.{index}.resnets.{layer}"
            if attentions is not None:
                state.sample = _attend(attentions[layer], state)
                state.skips.append(state.sample)
                yield f"down_blocks.{index}.attentions.{layer}"
        for layer, downsampler in enumerate(block.downsamplers or ()):
            state.sample = downsampler(state.sample)
            state.skips.append(state.sample)
            yield f"down_blocks.{index}.downsamplers.{layer}"


def _middle(unet: Any, state: _State) -> Iterator[str]:
    block = unet.mid_block
    state.sample = block.resnets[0](state.sample, state.embedding)
    yield "mid_block.resnets.0"
    for layer, (attention, resnet) in enumerate(zip(block.attentions, block.resnets[1:], strict=True)):
        state.sample = _attend(attention, state)
        yield f"mid_block.attentions.{layer}"
        state.sample = _resnet(block, resnet, state)
        yield f"mid_block.resnets.{layer + 1}"


def _way_up(unet: Any, state: _State, cut: int | None, forward_size: bool) -> Iterator[str]:
    first = cut if state.deep_feature is not None and cut is not None else 0
    number = 0
    for index, block in enumerate(unet.up_blocks):
        attentions = getattr(block, "attentions", None)
        for layer, resnet in enumerate(block.resnets):
            number += 1
            if number <= first:
                continue
            if number - 1 == cut:
                state.deep_feature = state.sample
            skip = state.skips.pop()
            if all(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")):
                skip = _free_u(block, state, skip)
            state.sample = torch.cat([state.sample, skip], dim=1)
            state.sample = _resnet(block, resnet, state)
            yield f"up_blocks.{index}.resnets.{layer}"
            if attentions is not None:
                state.sample = _attend(attentions[layer], state)
                yield f"up_blocks.{index}.attentions.{layer}"
        if number <= first:
            continue  # its upsampler ran before the feature was kept
        for layer, upsampler in enumerate(block.upsamplers or ()):
            size = state.skips[-1].shape[2:] if forward_size and index < len(unet.up_blocks) - 1 else None
            state.sample = upsampler(state.sample, size)
            yield f"up_blocks.{index}.upsamplers.{layer}"


def _resnet(block: Any, resnet: nn.Module, state: _State) -> Tensor:
    if torch.is_grad_enabled() and block.gradient_checkpointing:
        result: Tensor = block._gradient_checkpointing_func(resnet, state.sample, state.embedding)
        return result
    return resnet(state.sample, state.embedding)


def _attend(attention: nn.Module, state: _State) -> Tensor:
    return attention(state.sample, encoder_hidden_states=state.text, return_dict=False)[0]


def _free_u(block: Any, state: _State, skip: Tensor) -> Tensor:
    from diffusers.utils.torch_utils import apply_freeu

    # It writes into what it is given, and the deep feature is kept.
    state.sample, skip = apply_freeu(
        block.resolution_idx, state.sample.clone(), skip, s1=block.s1, s2=block.s2, b1=block.b1, b2=block.b2
    )
    return skip
