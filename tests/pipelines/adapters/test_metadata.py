"""What a file says about itself, and what it keeps to itself."""

import hashlib
import json
import re
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from studio.pipelines.adapters import AdapterInfo, Route, TrainingRecord, load_adapter, patched, save_adapter
from studio.pipelines.families import FAMILIES, family_named
from tests.support.adapters import TINY_MODELS, random_adapter
from tests.support.tiny_models import tiny_embedded

SECRET_FOLDER, SECRET_CAPTION = "/home/alice/photos_of_bob", "bob in the garden with a secret"

RECORD = TrainingRecord(
    learning_rate=1e-4,
    text_encoder_lr=5e-6,
    steps=600,
    seed=7,
    min_snr_gamma=5.0,
    gradient_checkpointing=True,
    training_comment=SECRET_CAPTION,
    output_name=f"{SECRET_FOLDER}/run-7",
    dataset_dirs={SECRET_FOLDER: {"n_repeats": 1, "img_count": 5}},
    tag_frequency={SECRET_FOLDER: {SECRET_CAPTION: 5}},
)

INFO = AdapterInfo(
    name="Bob the robot",
    family="embedded",
    base_name=f"{SECRET_FOLDER}/base",
    base_hash="ab" * 32,
    trigger="ohwx robot",
    class_noun="robot",
    roles=("subject",),
    created="2026-01-02T03:04:05+00:00",
    prediction_type="v_prediction",
    resolution=(96, 96),
    description="a robot",
    author="Alice",
    license="CC0-1.0",
    tags=("robot", "toy"),
    training=RECORD.as_strings(),
    thumbnail="data:image/jpeg;base64,AAAA",
)


@pytest.fixture(scope="module")
def adapter():
    return random_adapter(tiny_embedded(), info=INFO)


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("dialect", ["peft", "kohya"])
class TestOneFile:
    def test_information_comes_back_exactly(self, adapter, dialect, tmp_path):
        path = tmp_path / "bob.safetensors"
        save_adapter(adapter, path, dialect)
        assert load_adapter(path).info == INFO

    def test_modelspec(self, adapter, dialect, tmp_path):
        path = tmp_path / "bob.safetensors"
        save_adapter(adapter, path, dialect)
        metadata = metadata_of(path)
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
        spec = {key.removeprefix("modelspec."): value for key, value in metadata.items() if key.startswith("modelspec.")}
        assert spec["sai_model_spec"] == "1.0.1"
        assert spec["architecture"] == f"{family_named('embedded').modelspec_architecture}/lora"
        assert spec["implementation"].startswith("https://")
        assert (spec["title"], spec["resolution"]) == ("Bob the robot", "96x96")
        assert spec["prediction_type"] == "v"
        assert spec["trigger_phrase"] == "ohwx robot"
        assert "ohwx robot" in spec["usage_hint"]
        assert spec["thumbnail"].startswith("data:image/")
        assert spec["date"] == INFO.created
        assert spec["tags"] == "robot, toy"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        assert spec["hash_sha256"] == "0x" + hashlib.sha256(data[8 + length :]).hexdigest()

    def test_sd_scripts_keys(self, adapter, dialect, tmp_path):
        path = tmp_path / "bob.safetensors"
        save_adapter(adapter, path, dialect)
        metadata = metadata_of(path)
        expected = {
            "network_module": "networks.lora",
            "network_dim": "4",
            "network_alpha": "2",
            "v2": "False",
            "learning_rate": "0.0001",
            "steps": "600",
            "seed": "7",
            "gradient_checkpointing": "True",
            "base_model_version": family_named("embedded").ss_base_model_version,
        }
        assert {key: metadata[f"ss_{key}"] for key in expected} == expected
        assert json.loads(metadata["ss_tag_frequency"]) == {SECRET_FOLDER: {SECRET_CAPTION: 5}}
        assert json.loads(metadata["ss_dataset_dirs"])[SECRET_FOLDER]["img_count"] == 5

    def test_the_private_level_keeps_no_path_and_no_caption(self, adapter, dialect, tmp_path):
        path = tmp_path / "bob.safetensors"
        save_adapter(adapter, path, dialect, redact="private")
        data = path.read_bytes()
        assert b"alice" not in data
        assert b"photos_of_bob" not in data
        assert b"garden" not in data
        info = load_adapter(path).info
        assert (info.trigger, info.base_name, info.base_hash, info.thumbnail) == (
            INFO.trigger,
            "base",
            INFO.base_hash,
            INFO.thumbnail,
        )
        assert info.training["output_name"] == "run-7"
        assert info.training["learning_rate"] == "0.0001"

    def test_the_minimal_level_keeps_what_loading_needs(self, adapter, dialect, tmp_path):
        path, full = tmp_path / "minimal.safetensors", tmp_path / "full.safetensors"
        save_adapter(adapter, path, dialect, redact="minimal")
        save_adapter(adapter, full, dialect)
        assert set(metadata_of(path)) == {"format"} | ({"lora_adapter_metadata"} if dialect == "peft" else set())
        minimal = load_adapter(path)
        assert minimal.content_hash() == load_adapter(full).content_hash()
        assert minimal.info == AdapterInfo(name="minimal", family=None)

    @pytest.mark.parametrize("redact", ["none", "private", "minimal"])
    def test_metadata_change_no_picture(self, adapter, dialect, redact, tmp_path):
        model, path = tiny_embedded(), tmp_path / "bob.safetensors"
        save_adapter(adapter, path, dialect, redact=redact)
        with torch.no_grad(), patched(model.components(), [Route(load_adapter(path))]):
            drawn = model.unet(**model.unet_inputs()).sample
        with torch.no_grad(), patched(model.components(), [Route(adapter.to(dtype=torch.float16))]):
            torch.testing.assert_close(drawn, model.unet(**model.unet_inputs()).sample, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_family_is_read_from_either_standard(family, tmp_path):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 4), f"{layer}.lora_up.weight": torch.ones(6, 2)}
    for metadata in (
        {"modelspec.architecture": f"{family.modelspec_architecture}/lora"},
        {"ss_base_model_version": family.ss_base_model_version},
    ):
        path = tmp_path / "foreign.safetensors"
        save_file(tensors, path, metadata)
        assert load_adapter(path).info.family == family.name


@pytest.mark.parametrize(("width", "family"), [(768, "sd15"), (1024, "sd2"), (2048, "sdxl"), (777, None)])
def test_without_metadata_the_width_of_the_text_features_tells_the_family(width, family, tmp_path):
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    path = tmp_path / "foreign.safetensors"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, width), f"{layer}.lora_B.weight": torch.ones(6, 2)}, path)
    assert load_adapter(path).info.family == family


def test_what_another_tool_says_is_understood_and_what_it_garbles_passed_over(tmp_path):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 4), f"{layer}.lora_up.weight": torch.ones(6, 2)}
    path = tmp_path / "foreign.safetensors"
    save_file(tensors, path, {"ss_output_name": "corgi", "modelspec.trigger_phrase": "xyz dog", "modelspec.resolution": "1024"})
    info = load_adapter(path).info
    assert (info.name, info.trigger, info.resolution) == ("corgi", "xyz dog", (1024, 1024))
    for garbled in ("{", "[]", '{"name": 3}', '{"name": "x", "tags": 3, "resolution": ["a", 1], "trigger": [], "type": 5}'):
        save_file(tensors, path, {"studio.adapter": garbled, "modelspec.resolution": "a lot"})
        info = load_adapter(path).info
        assert info.name in ("foreign", "x")
        assert (info.tags, info.resolution, info.trigger, info.type) == ((), None, None, "lora")


@pytest.mark.parametrize("family", TINY_MODELS)
def test_files_have_contiguous_float16_tensors_and_the_ecosystems_names(family, tmp_path):
    adapter = random_adapter(TINY_MODELS[family]())
    text_encoders = len(TINY_MODELS[family]().text_encoders)
    kohya_prefixes = {"sdxl": ("lora_te1", "lora_te2")}.get(family, ("lora_te",))
    save_adapter(adapter, tmp_path / "peft.safetensors", "peft")
    save_adapter(adapter, tmp_path / "kohya.safetensors", "kohya")
    for name, text_prefixes in (
        ("peft", [f"text_encoder{suffix}.text_model.encoder.layers.0." for suffix in ("", "_2")[:text_encoders]]),
        ("kohya", [f"{prefix}_text_model_encoder_layers_0_" for prefix in kohya_prefixes]),
    ):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            keys = list(file.keys())
            types = {file.get_tensor(key).dtype for key in keys if not key.endswith(".alpha")}
        assert types == {torch.float16}
        for prefix in text_prefixes:
            assert any(key.startswith(prefix) for key in keys)
        is_ldm = any(re.search("input_blocks|middle_block|output_blocks", key) for key in keys)
        assert is_ldm == (name == "kohya" and family == "sdxl")
