"""The facts about families, checked on full-size models without weights and against the libraries' own tables."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from studio.pipelines.base_files.single_file import configs_dir
from studio.pipelines.errors import BaseModelError, UserError
from studio.pipelines.families import (
    EMBEDDED,
    FAMILIES,
    SD2,
    SD15,
    SDXL,
    ModelFamily,
    detect_family,
    family_named,
    module_axis,
)
from tests.support.ldm_names import ldm_unet
from tests.support.tiny_models import TinyModel, sd15_unet_config, sdxl_unet_config, tiny_embedded, tiny_sd15, tiny_sdxl


def full_size_unet(family: ModelFamily) -> UNet2DConditionModel:
    config = {"sd15": sd15_unet_config, "sdxl": sdxl_unet_config}[family.name]()
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def matches(pattern: str, names: list[str]) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]


@pytest.mark.parametrize(("family", "count"), [(SD15, 128), (SDXL, 560)])
def test_attention_targets_are_exactly_the_attention_projections(family: ModelFamily, count: int):
    unet = full_size_unet(family)
    found = matches(family.attention_targets, [name for name, _ in unet.named_modules()])
    assert len(found) == count
    assert all(isinstance(unet.get_submodule(name), torch.nn.Linear) for name in found)
    assert {name.rpartition("attn")[2][2:] for name in found} == {"to_q", "to_k", "to_v", "to_out.0"}


@pytest.mark.parametrize(("family", "count"), [(SD15, 797_184), (SDXL, 5_806_080)])
def test_rank_4_parameter_counts_are_the_papers(family: ModelFamily, count: int):
    unet = full_size_unet(family)
    layers = [unet.get_submodule(name) for name in matches(family.attention_targets, [n for n, _ in unet.named_modules()])]
    assert sum(4 * (layer.in_features + layer.out_features) for layer in layers) == count


def test_embedded_adapter_targets_also_take_feed_forwards_projections_and_convolutions():
    unet = tiny_embedded().unet
    found = matches(EMBEDDED.adapter_targets, [name for name, _ in unet.named_modules()])
    ends = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "proj_in",
        "proj_out",
        "conv1",
        "conv2",
        "conv_shortcut",
    )
    assert all(any(name.endswith(f".{end}") for name in found) for end in ends)
    assert all(name.endswith(ends) for name in found)
    assert not [name for name in found if "time_emb" in name or "sampler" in name or name in ("conv_in", "conv_out")]
    assert all(isinstance(unet.get_submodule(name), torch.nn.Linear | torch.nn.Conv2d) for name in found)


def test_sdxl_block_names_agree_with_the_converter_of_diffusers():
    """Renaming by the table, then by diffusers' converter, gives every weight its own name back."""
    state = full_size_unet(SDXL).state_dict()
    longest_first = sorted(SDXL.kohya_names, key=lambda pair: -len(pair[0]))
    renamed = {}
    for name, tensor in state.items():
        prefix, ldm_prefix = next(pair for pair in longest_first if name.startswith(pair[0] + "."))
        renamed[f"model.diffusion_model.{ldm_prefix}{name[len(prefix) :]}"] = tensor
    assert len(renamed) == len(state) == 1680
    assert set(renamed) == set(ldm_unet(state, num_levels=3))
    config = json.loads((configs_dir(SDXL) / "unet" / "config.json").read_text())
    converted = convert_ldm_unet_checkpoint(renamed, config)
    assert {name: tensor.shape for name, tensor in converted.items()} == {n: t.shape for n, t in state.items()}


@pytest.mark.parametrize(("model", "family"), [(tiny_sd15(), SD15), (tiny_sdxl(), SDXL), (tiny_embedded(), EMBEDDED)])
def test_structure_tells_the_family(model: TinyModel, family: ModelFamily):
    encoders = [encoder.config.to_dict() for encoder in model.text_encoders]
    assert detect_family(model.unet.config, encoders) is family


def test_linear_projections_with_one_encoder_are_sd2():
    assert detect_family({"in_channels": 4, "use_linear_projection": True, "cross_attention_dim": 1024}) is SD2


@pytest.mark.parametrize(
    "config", [{"in_channels": 9}, {"in_channels": 8}, {"in_channels": 9, "addition_embed_type": "text_time"}]
)
def test_inpainting_and_editing_models_are_refused(config: dict[str, object]):
    with pytest.raises(BaseModelError, match="text-to-image"):
        detect_family(config)


def test_the_refiner_is_refused():
    with pytest.raises(BaseModelError, match="refiner"):
        detect_family({"in_channels": 4, "addition_embed_type": "text_time"}, [{}])


@pytest.mark.parametrize(
    ("path", "axis"),
    [
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "text"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", "text"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_q", "spatial"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_k", "spatial"),
        ("mid_block.resnets.0.time_emb_proj", "global"),
        ("mid_block.resnets.0.conv1", "spatial"),
        ("time_embedding.linear_1", "global"),
        ("add_embedding.linear_2", "global"),
        ("conv_in", "spatial"),
    ],
)
def test_axis_of_a_module(path: str, axis: str):
    assert module_axis(path) == axis


def test_names_are_unique_and_a_wrong_one_gets_the_nearest():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert all(family_named(family.name) is family for family in FAMILIES)
    with pytest.raises(UserError, match="did you mean 'sdxl'"):
        family_named("sdx")


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_in_range(family: ModelFamily):
    train = family.train
    assert train.min_steps <= train.max_steps
    assert train.resolution % family.size_multiple == 0 == family.default_size % family.size_multiple
    assert 0 <= train.caption_dropout < 1 and 0 <= train.bare_caption_share < 1
