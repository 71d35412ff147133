"""Exact facts at full size, and the names in files."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from studio.pipelines.adapters import canonical_name, new_lora, target_modules
from studio.pipelines.adapters.serialization.kohya_names import (
    _TEXT_ENCODER,
    _UNET,
    _compiled,
    dotted_text_encoder_name,
    dotted_unet_name,
    ldm_name,
    underscored,
)
from studio.pipelines.families import EMBEDDED, SD15, SDXL
from tests.support.adapters import TINY_MODELS
from tests.support.tiny_models import sd15_unet_config, sdxl_unet_config, tiny_embedded


def on_meta(config):
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


@pytest.fixture(scope="module")
def unets():
    return {
        "sd15": on_meta(sd15_unet_config()),
        "sdxl": on_meta(sdxl_unet_config()),
        "embedded": on_meta(dict(tiny_embedded().unet.config)),
    }


@pytest.mark.parametrize(
    ("family", "rank", "num_parameters"),
    [(SD15, 4, 797_184), (SD15, 16, 3_188_736), (SDXL, 4, 5_806_080), (SDXL, 16, 23_224_320)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_parameters_of_a_lora_on_attention_at_full_size(unets, family, rank, num_parameters):
    adapter = new_lora({"unet": unets[family.name]}, {"unet": family.attention_targets}, rank, rank)
    assert adapter.num_parameters() == num_parameters


def attention_names(blocks: list[tuple[str, int, int]]) -> list[str]:
    """Names by formula: (block, attentions in it, transformer blocks in each)."""
    leaves = [f"attn{n}.{leaf}" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    return [
        f"{block}.attentions.{attention}.transformer_blocks.{depth}.{leaf}"
        for block, num_attentions, num_blocks in blocks
        for attention in range(num_attentions)
        for depth in range(num_blocks)
        for leaf in leaves
    ]


SD15_BLOCKS = [
    *((f"down_blocks.{block}", 2, 1) for block in (0, 1, 2)),
    *((f"up_blocks.{block}", 3, 1) for block in (1, 2, 3)),
    ("mid_block", 1, 1),
]
SDXL_BLOCKS = [
    *(("down_blocks.1", 2, 2), ("down_blocks.2", 2, 10)),
    *(("up_blocks.0", 3, 10), ("up_blocks.1", 3, 2)),
    ("mid_block", 1, 10),
]


@pytest.mark.parametrize(
    ("family", "blocks", "count"), [(SD15, SD15_BLOCKS, 128), (SDXL, SDXL_BLOCKS, 560)], ids=["sd15", "sdxl"]
)
def test_attention_targets_at_full_size(unets, family, blocks, count):
    targets = target_modules(unets[family.name], family.attention_targets)
    names = attention_names(blocks)
    assert len(names) == count
    assert sorted(targets) == sorted(names)
    assert all(isinstance(module, nn.Linear) for module in targets.values())


@pytest.mark.parametrize("name", ["sd15", "sdxl", "embedded"])
def test_every_module_of_a_unet_comes_back_from_its_underscored_name(unets, name):
    family = {"sd15": SD15, "sdxl": SDXL, "embedded": EMBEDDED}[name]
    names = [path for path, module in unets[name].named_modules() if next(module.parameters(recurse=False), None) is not None]
    assert len(names) > 100
    assert [dotted_unet_name(underscored(path)) for path in names] == names
    assert [dotted_unet_name(underscored(ldm_name(path, family))) for path in names] == names


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_layer_of_a_text_encoder_comes_back_from_its_underscored_name(name):
    for encoder in TINY_MODELS[name]().text_encoders:
        names = [canonical_name(encoder, path) for path in target_modules(encoder, ".*")]
        canonical = list(target_modules(encoder, ".*"))
        assert [dotted_text_encoder_name(underscored(path)) for path in canonical] == canonical
        assert len(names) >= 12


def test_a_name_means_one_module_only(unets):
    names = {path for unet in unets.values() for path, module in unet.named_modules() if hasattr(module, "weight")}
    for path in names:
        assert sum(regex.fullmatch(underscored(path)) is not None for regex, _ in _compiled(_UNET)) == 1
    assert len({underscored(template) for template in _UNET}) == len(_UNET)
    assert len({underscored(template) for template in _TEXT_ENCODER}) == len(_TEXT_ENCODER)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", "input_blocks.4.1.transformer_blocks.1.attn1.to_q"),
        ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
        ("mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj", "middle_block.1.transformer_blocks.9.ff.net.0.proj"),
        ("up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0", "output_blocks.2.1.transformer_blocks.0.attn2.to_out.0"),
        ("up_blocks.1.attentions.0.proj_out", "output_blocks.3.1.proj_out"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"),
    ],
)
def test_sdxl_names_in_the_way_sd_scripts_writes_them(ours, theirs):
    assert ldm_name(ours, SDXL) == theirs
    assert dotted_unet_name(underscored(theirs)) == ours
    assert ldm_name(ours, SD15) == ours


def test_ldm_names_of_sd15_are_read_too():
    assert dotted_unet_name("output_blocks_2_1_conv") == "up_blocks.0.upsamplers.0.conv"
    assert dotted_unet_name("output_blocks_5_2_conv") == "up_blocks.1.upsamplers.0.conv"
    name = "input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    assert dotted_unet_name(name) == "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    "name",
    [
        "down_blocks_0_attentions_0_proj",
        "down_blocks_x_attentions_0_proj_in",
        "down_blocks_01_attentions_0_proj_in",
        "down_blocks_0_attentions_0_transformer_blocks_0_attn3_to_q",
        "up_blocks_0_downsamplers_0_conv",
        "double_blocks_0_img_attn_qkv",
        "input_blocks_99_1_proj_in",
        "input_blocks_4_1_",
        "text_model_encoder_layers_0_self_attn_q_proj",
        "",
    ],
)
def test_other_names_are_not_guessed_at(name):
    assert dotted_unet_name(name) is None
