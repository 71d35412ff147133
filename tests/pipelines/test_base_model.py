"""Loading base models from every kind of place, and what they turn prompts and pictures into."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.pipelines import base_model as base_module
from studio.pipelines.base_files.loading import quiet_libraries
from studio.pipelines.base_files.weight_files import find_weight_files
from studio.pipelines.base_model import (
    BaseModel,
    add_time_ids,
    decode_latents,
    encode_images,
    encode_negative,
    encode_text,
    load_base,
)
from studio.pipelines.errors import BaseModelError, MissingFileError
from tests.support.tiny_bases import tiny_embedded_dir, tiny_sd15_dir, tiny_sdxl_dir

WRITERS = {"embedded": tiny_embedded_dir, "sd15": tiny_sd15_dir, "sdxl": tiny_sdxl_dir}
PROMPTS = ["a red cat", "a dog left of a boat"]


@pytest.fixture(scope="module", params=list(WRITERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("bases") / request.param)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture
def base(folder: Path) -> BaseModel:
    return load_base(folder)


# ------------------------------------------------------------------------------------------------------ loading


def test_a_folder_is_loaded_whole_frozen_and_in_evaluation_mode(base: BaseModel, folder: Path):
    assert base.family.name == folder.name
    assert base.size == 64 and base.vae_scale_factor == 8
    for module in (base.unet, base.vae, *base.text_encoders):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    written = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in base.unet.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_component_has_the_asked_dtype_whatever_the_files_hold(copy: Path, dtype: torch.dtype):
    for path in copy.rglob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    for path in copy.glob("text_encoder*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float16"}))
    base = load_base(copy, dtype=dtype)
    types = {p.dtype for module in (base.unet, base.vae, *base.text_encoders) for p in module.parameters()}
    assert types == {dtype}


def test_content_hash_names_the_weights_and_nothing_else(base: BaseModel, copy: Path):
    assert len(base.content_hash) == 64
    moved = load_base(copy)
    assert moved.content_hash == base.content_hash
    (copy / "README.md").write_text("notes")
    assert load_base(copy).content_hash == base.content_hash
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert load_base(copy).content_hash != base.content_hash


def test_half_precision_and_sharded_files_are_found(copy: Path):
    unet_dir = copy / "unet"
    plain = unet_dir / "diffusion_pytorch_model.safetensors"
    plain.rename(unet_dir / "diffusion_pytorch_model.fp16.safetensors")
    assert find_weight_files(unet_dir)[0] == "fp16"
    assert load_base(copy).family.name == copy.name
    weights = load_file(unet_dir / "diffusion_pytorch_model.fp16.safetensors")
    (unet_dir / "diffusion_pytorch_model.fp16.safetensors").unlink()
    names = sorted(weights)
    halves = {"1": names[: len(names) // 2], "2": names[len(names) // 2 :]}
    where = {}
    for number, part in halves.items():
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, unet_dir / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(part, shard)
    index = unet_dir / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    base = load_base(copy)
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.unet.state_dict().items())
    (unet_dir / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BaseModelError, match="00002-of-00002"):
        load_base(copy)


# ------------------------------------------------------------------------------------- everything that can be wrong


def test_a_missing_component_is_named(copy: Path):
    shutil.rmtree(copy / "vae")
    with pytest.raises(BaseModelError, match="'vae'"):
        load_base(copy)


def test_a_pickled_file_is_refused_by_name(copy: Path):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(BaseModelError, match=r"diffusion_pytorch_model\.bin.*not a safetensors file"):
        load_base(copy)


def test_a_truncated_file_is_one_sentence(copy: Path):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BaseModelError, match="Cannot load the unet of") as caught:
        load_base(copy)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_counted(copy: Path):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="lacks 1 of its weights, 'conv_in.weight'"):
        load_base(copy)


def test_another_kind_of_model_is_named(tmp_path: Path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(BaseModelError, match="FluxPipeline"):
        load_base(tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"model_index\.json"):
        load_base(tmp_path)


def test_sdxl_without_its_second_encoder_is_refused(tmp_path: Path):
    folder = tiny_sdxl_dir(tmp_path / "sdxl")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(BaseModelError, match="text encoders"):
        load_base(folder)


@pytest.mark.parametrize("spec", ["nothing/here/at/all", "./nothing", "model.safetensors", "C:\\models\\nothing"])
def test_a_missing_path_leaves_with_code_3(spec: str):
    with pytest.raises(MissingFileError, match="no base model at") as caught:
        load_base(spec)
    assert caught.value.exit_code == 3


def test_an_unreachable_hub_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingFileError, match="hub cannot be reached") as caught:
        load_base("nobody/nothing-of-this-name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt"])
def test_pickled_checkpoints_are_refused_unread(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"pickle")
    with pytest.raises(BaseModelError, match="not a safetensors file"):
        load_base(path)


def test_an_absent_embedded_base_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(base_module, "embedded_base_dir", lambda: tmp_path)
    with pytest.raises(MissingFileError, match="make base-model"):
        load_base()


# ------------------------------------------------------------------------------------------------- text and pictures


def test_text_features_are_those_of_the_diffusers_pipeline(base: BaseModel):
    condition = encode_text(base, PROMPTS)
    negative = encode_negative(base, "", 2)
    with quiet_libraries():
        theirs = base.diffusers_pipeline().encode_prompt(
            prompt=PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    assert torch.equal(condition.prompt_embeds, theirs[0])
    assert torch.equal(negative.prompt_embeds, theirs[1])
    if condition.pooled is not None:
        assert torch.equal(condition.pooled, theirs[2])
        assert negative.pooled is not None and torch.equal(negative.pooled, theirs[3])


def test_a_written_negative_prompt_is_encoded(base: BaseModel):
    negative = encode_negative(base, "blurry", 3)
    assert torch.equal(negative.prompt_embeds, encode_text(base, ["blurry"]).prompt_embeds.expand(3, -1, -1))


def test_gradients_reach_the_text_encoder(base: BaseModel):
    weight = base.text_encoders[-1].get_parameter(
        next(name for name, _ in base.text_encoders[-1].named_parameters() if name.endswith("0.self_attn.q_proj.weight"))
    )
    weight.requires_grad_(True)
    encode_text(base, PROMPTS).prompt_embeds.square().sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_latents_have_the_scale_the_pipeline_undoes(base: BaseModel):
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_images(base, pixels, torch.Generator().manual_seed(1))
    assert latents.shape == (2, base.family.latent_channels, 8, 6)
    assert torch.equal(latents, encode_images(base, pixels, torch.Generator().manual_seed(1)))
    pictures = decode_latents(base, latents)
    theirs = base.vae.decode(latents / base.vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal(pictures, (theirs / 2 + 0.5).clamp(0, 1))
    assert not pictures.requires_grad and not latents.requires_grad


def test_size_conditioning_is_the_pipelines(base: BaseModel):
    ids = add_time_ids(base, 2, 64, 48, original_size=(100, 80), crop_top_left=(3, 5))
    if base.family.name != "sdxl":
        assert ids is None
        return
    width = base.text_encoders[1].config.projection_dim
    theirs = base.diffusers_pipeline()._get_add_time_ids((100, 80), (3, 5), (64, 48), torch.float32, width)
    assert ids is not None and torch.equal(ids, theirs.expand(2, -1))


def test_the_hash_of_one_file_is_the_files_own(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path)
    from studio.pipelines.base_files.content_hash import content_hash

    assert content_hash(tmp_path, [path]) == hashlib.sha256(path.read_bytes()).hexdigest()
