"""Single-file checkpoints in the original LDM layout, loaded without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from studio.pipelines.base_files.clip_vocabulary import END, clip_tokenizer
from studio.pipelines.base_files.single_file import OPEN_CLIP_PAD, configs_dir, load_single_file
from studio.pipelines.base_model import load_base
from studio.pipelines.errors import BaseModelError
from studio.pipelines.families import SD15, SDXL, ModelFamily, detect_family
from tests.support.ldm_names import ldm_clip, ldm_open_clip, ldm_unet, ldm_vae
from tests.support.tiny_bases import write_base
from tests.support.tiny_models import TinyModel, tiny_sd15, tiny_sdxl

SD15_TEXT = "cond_stage_model.transformer."
SDXL_TEXT, SDXL_TEXT_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def ldm_checkpoint(model: TinyModel) -> dict[str, Tensor]:
    """A tiny model's weights as one checkpoint in the original layout."""
    levels = len(model.unet.config.block_out_channels)
    tensors = ldm_unet(model.unet.state_dict(), levels) | ldm_vae(model.vae.state_dict())
    if model.family == "sd15":
        tensors |= ldm_clip(model.text_encoders[0].state_dict(), SD15_TEXT)
    else:
        tensors |= ldm_clip(model.text_encoders[0].state_dict(), SDXL_TEXT)
        tensors |= ldm_open_clip(model.text_encoders[1].state_dict(), SDXL_TEXT_2)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def component(family: ModelFamily, name: str) -> nn.Module:
    """A full-size component without weights, from the configs that come with the studio."""
    config = json.loads((configs_dir(family) / name / "config.json").read_text())
    with torch.device("meta"):
        if name == "unet":
            return UNet2DConditionModel.from_config(config)
        if name == "vae":
            return AutoencoderKL.from_config(config)
        text_class: Any = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
        return text_class(CLIPTextConfig(**config))


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(("family", "count"), [(SD15, 686), (SDXL, 1680)])
def test_every_weight_of_a_full_size_unet_is_converted(family: ModelFamily, count: int):
    unet = component(family, "unet")
    config = dict(unet.config)
    converted = convert_ldm_unet_checkpoint(ldm_unet(unet.state_dict(), len(config["block_out_channels"])), config)
    assert shapes(converted) == shapes(unet.state_dict())
    assert len(converted) == count
    assert detect_family(config) is family


@pytest.mark.parametrize("family", [SD15, SDXL])
def test_every_weight_of_a_full_size_vae_is_converted(family: ModelFamily):
    vae = component(family, "vae")
    assert shapes(convert_ldm_vae_checkpoint(ldm_vae(vae.state_dict()), dict(vae.config))) == shapes(vae.state_dict())
    assert len(vae.state_dict()) == 248


@pytest.mark.parametrize(("family", "prefix"), [(SD15, SD15_TEXT), (SDXL, SDXL_TEXT)])
def test_every_weight_of_a_full_size_clip_is_converted(family: ModelFamily, prefix: str):
    encoder = component(family, "text_encoder")
    converted = convert_ldm_clip_checkpoint(ldm_clip(encoder.state_dict(), prefix))
    ours = {name.removeprefix("text_model."): shape for name, shape in shapes(converted).items()}
    ours.pop("embeddings.position_ids")
    assert ours == {name.removeprefix("text_model."): shape for name, shape in shapes(encoder.state_dict()).items()}
    assert len(ours) == 196


def test_every_weight_of_a_full_size_open_clip_is_converted():
    encoder = component(SDXL, "text_encoder_2")
    converted = convert_open_clip_checkpoint(encoder, ldm_open_clip(encoder.state_dict(), SDXL_TEXT_2), prefix=SDXL_TEXT_2)
    assert shapes(converted) == shapes(encoder.state_dict())
    assert len(converted) == 517


@pytest.mark.parametrize("make", [tiny_sd15, tiny_sdxl])
def test_a_checkpoint_gives_the_weights_it_was_made_of(make: Any, tmp_path: Path):
    model: TinyModel = make()
    configs = write_base(model, tmp_path / "configs")
    save_file(ldm_checkpoint(model), tmp_path / "model.safetensors")
    loaded = load_single_file(tmp_path / "model.safetensors", dtype=torch.float32, config_dir=configs)
    assert loaded.family.name == model.family
    pairs = [(loaded.unet, model.unet), (loaded.vae, model.vae), *zip(loaded.text_encoders, model.text_encoders, strict=True)]
    for ours, theirs in pairs:
        state = ours.state_dict()
        assert set(state) == set(theirs.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


def test_the_marks_of_a_v_prediction_checkpoint_are_read(tmp_path: Path):
    model = tiny_sdxl()
    configs = write_base(model, tmp_path / "configs")
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file(ldm_checkpoint(model) | marks, tmp_path / "model.safetensors")
    loaded = load_single_file(tmp_path / "model.safetensors", dtype=torch.bfloat16, config_dir=configs)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.scheduler.config.rescale_betas_zero_snr
    assert next(loaded.unet.parameters()).dtype == torch.bfloat16


def without(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: without(tensors, "first_stage_model."), "no VAE"),
        (lambda tensors: without(tensors, "cond_stage_model."), "no text encoder"),
        (lambda tensors: without(tensors, "model.diffusion_model."), "no checkpoint"),
        (lambda tensors: {"lora_unet_mid_block.lora_down.weight": torch.ones(1)}, "is an adapter"),
        (lambda tensors: {"down_blocks.0.resnets.0.conv1.weight": torch.ones(1)}, "a UNet alone"),
        (lambda tensors: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1, 9, 3, 3)}, "inpainting"),
        (lambda tensors: tensors | {"cond_stage_model.model.ln_final.bias": torch.ones(1)}, "Stable Diffusion 2"),
        (lambda tensors: tensors | {"conditioner.embedders.0.model.ln_final.bias": torch.ones(1)}, "refiner"),
        (lambda tensors: tensors | {"edm_mean": torch.ones(1)}, "EDM"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(change: Any, message: str, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file(change(ldm_checkpoint(tiny_sd15())), path)
    with pytest.raises(BaseModelError, match=message):
        load_base(path)


def test_missing_weights_are_noticed(tmp_path: Path):
    model = tiny_sd15()
    configs = write_base(model, tmp_path / "configs")
    tensors = without(ldm_checkpoint(model), "model.diffusion_model.middle_block.0.in_layers")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match="lacks"):
        load_single_file(tmp_path / "model.safetensors", dtype=torch.float32, config_dir=configs)


def test_a_damaged_file_is_one_sentence(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(BaseModelError, match="damaged or incomplete"):
        load_base(path)


def test_the_shipped_vocabulary_is_clips():
    """Ids of OpenAI's own tokenizer, as in its repository's examples."""
    tokenizer = clip_tokenizer(pad_token=END)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("a diagram").input_ids == [49406, 320, 22697, 49407]
    assert tokenizer("Hello  World!").input_ids == [49406, 3306, 1002, 256, 49407]
    assert tokenizer("a", padding="max_length").input_ids == [49406, 320, *[49407] * 75]


def test_the_second_tokenizer_pads_with_zero():
    tokenizer = clip_tokenizer(pad_token=OPEN_CLIP_PAD)
    assert tokenizer("a cat", padding="max_length").input_ids == [49406, 320, 2368, 49407, *[0] * 73]
