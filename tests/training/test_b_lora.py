"""B-LoRA: what trains, with which words, and what comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from studio.pipelines.adapters import load_adapter, new_lora
from studio.pipelines.adapters.roles import role_of, roles_present
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.block_roles import BlockProbe, choose_blocks, probe_path, read_block_probe, write_block_probe
from studio.pipelines.errors import BaseModelError, ConfigError, UserError
from studio.pipelines.families import SD15, SDXL
from studio.training.config import TrainConfig, dump_toml, load_config, resolve_defaults
from studio.training.data.dataset import load_concept
from studio.training.methods.b_lora import BLoRA, inside
from studio.training.trainer import train
from tests.support.tiny_bases import tiny_base, tiny_sd15_dir
from tests.support.tiny_models import sdxl_unet_config

CONTENT, STYLE = "mid_block.attentions.0", "up_blocks.2.attentions.1"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.effect_noise((80, 48), 90).convert("RGB").save(path)
    return path


@pytest.fixture
def b_lora_config(make_config: Callable[..., TrainConfig], picture: Path) -> Callable[..., TrainConfig]:
    def make(family: str = "embedded", **settings: object) -> TrainConfig:
        given = {"adapter__method": "b-lora", "concept__images": str(picture), "schedule__warmup_steps": "default", **settings}
        return make_config(family, concept__class_noun="default", **given)

    return make


def test_on_sdxl_it_trains_the_papers_160_layers():
    """28,180,480 parameters at rank 64: 30.3 % of a LoRA on all attention."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sdxl_unet_config())
    defaults = SDXL.train_defaults("b-lora")
    assert (defaults.rank, defaults.alpha, defaults.learning_rate) == (64, 64.0, 5e-5)
    assert defaults.targets is not None and SDXL.content_block is not None and SDXL.style_block is not None
    adapter = new_lora({"unet": unet}, {"unet": inside([SDXL.content_block, SDXL.style_block], defaults.targets)}, 64, 64.0)
    assert len(adapter.patches) == 160
    assert adapter.num_parameters() == 28_180_480
    assert roles_present(replace(adapter, info=replace(adapter.info, family="sdxl"))) == {"content": 80, "style": 80}
    assert {path.module.split("attn")[-1][2:] for path in adapter.patches} == {"to_q", "to_k", "to_v", "to_out.0"}


def test_the_words_are_neutral(picture: Path):
    config = load_config(None, {"adapter.method": "b-lora", "concept.images": str(picture), "concept.token": "[v]"})
    resolved, dataset = load_concept(config, SDXL)
    assert dataset.train_items[0].captions.all() == ("", "a [v]")
    assert {sample.caption for step in range(9) for sample in dataset.plan(resolved).step(step).instance} == {"a [v]"}
    assert (resolved.loss.prior, resolved.loss.snr_gamma) == ("none", 0.0)
    assert (resolved.schedule.steps, resolved.schedule.warmup_steps, resolved.data.batch_size) == (1000, 0, 1)
    assert (resolved.data.resolution, resolved.data.buckets) == (1024, False)
    assert resolved.adapter.train_text_encoder is False


def test_only_b_lora_does_without_a_class_noun(picture: Path):
    with pytest.raises(ConfigError, match=r"class_noun is missing"):
        load_config(None, {"concept.images": str(picture)})
    given = {"adapter.method": "b-lora", "concept.images": str(picture), "concept.class_noun": "dog", "schedule.warmup_steps": 3}
    config = load_config(None, given)
    assert (config.concept.class_noun, config.schedule.warmup_steps) == ("dog", 3)
    assert config.concept.caption_templates == ("a {token}",)


def test_its_section_belongs_to_it(picture: Path, tmp_path: Path):
    given = {"concept.images": str(picture), "concept.class_noun": "dog", "b_lora.content_block": CONTENT}
    with pytest.raises(ConfigError, match=r"\[b_lora\] belongs to the method b-lora, and this run's is dreambooth-lora"):
        load_config(None, given)
    config = load_config(None, {**given, "b_lora.style_block": STYLE, "adapter.method": "b-lora"})
    (tmp_path / "config.toml").write_text(dump_toml(config))
    assert load_config(tmp_path / "config.toml") == config


def test_more_than_one_picture_is_remarked_on(
    photos: Path, b_lora_config: Callable[..., TrainConfig], base_dirs: dict[str, Path]
):
    family = load_base(base_dirs["embedded"]).family
    _, several = load_concept(b_lora_config(concept__images=str(photos)), family)
    assert any("B-LoRA is made for one" in note for note in several.notes)
    _, one = load_concept(b_lora_config(), family)
    assert not any("B-LoRA" in note for note in one.notes)
    assert any("With one photo none is kept apart" in note for note in one.notes)


def test_one_run_gives_one_adapter_with_two_halves(b_lora_config: Callable[..., TrainConfig]):
    blocks = {"b_lora__content_block": CONTENT, "b_lora__style_block": STYLE}
    result = train(b_lora_config(run__sample_every=2, run__sample_steps=2, **blocks))
    assert result.trigger == "ohwx"
    for path in (result.adapter_path, result.kohya_path):
        adapter = load_adapter(path)
        assert adapter.info.roles == ("content", "style")
        assert adapter.info.role_blocks == {"content": (CONTENT,), "style": (STYLE,)}
        assert adapter.info.trigger == "ohwx"
        assert {role_of(where, adapter.info.role_blocks) for where in adapter.patches} == {"content", "style"}
        # Self-attention over a single place does not depend on queries and keys: nothing reaches them on models this small.
        learning = [patch for where, patch in adapter.patches.items() if not re.search(r"attn1\.to_[qk]$", where.module)]
        assert all(patch.parameters()["up"].abs().max() > 0 for patch in learning)


def test_without_a_known_split_it_says_where_to_look(tmp_path: Path, b_lora_config: Callable[..., TrainConfig]):
    with pytest.raises(UserError, match=r"Stable Diffusion 1\.5 has no published split\. .*studio probe-blocks --base"):
        train(b_lora_config("sd15"))
    assert SD15.content_block is None
    base = tiny_base("sd15", tmp_path / "base")
    named = choose_blocks(base, "mid_block.attentions.0", "up_blocks.1.attentions.0")
    assert (named.source, named.blocks["style"]) == ("named", ("up_blocks.1.attentions.0",))
    with pytest.raises(UserError, match="both blocks or neither"):
        choose_blocks(base, "mid_block.attentions.0")
    with pytest.raises(UserError, match="overlap"):
        choose_blocks(base, "up_blocks.1", "up_blocks.1.attentions.0")


def test_a_block_that_is_not_there_is_named(tmp_path: Path, picture: Path):
    base = tiny_base("embedded", tmp_path / "base")
    blocks = {"b_lora.content_block": CONTENT, "b_lora.style_block": "up_blocks.0.attentions.1"}
    config = load_config(None, {"adapter.method": "b-lora", "concept.images": str(picture), **blocks})
    method = BLoRA()
    settings = method.configure(resolve_defaults(config, base.family, 1))
    with pytest.raises(ConfigError, match=r"style block up_blocks\.0\.attentions\.1 .* stacks are: down_blocks\.0"):
        method.attach(base, settings, torch.Generator())
    text = load_config(None, {"adapter.method": "b-lora", "concept.images": "x", "adapter.train_text_encoder": True})
    with pytest.raises(ConfigError, match="neither half"):
        method.configure(resolve_defaults(text, base.family, 1))


def _probe(base: BaseModel, **changes: object) -> BlockProbe:
    probe = BlockProbe(base_hash=base.content_hash, content_block="a.b", style_block="c.d", separates=True, sentence="Found.")
    return replace(probe, **changes)


def test_a_probe_beside_the_base_is_stronger_than_the_family(tmp_path: Path):
    base = load_base(tiny_sd15_dir(tmp_path / "base"))
    assert read_block_probe(base) is None
    write_block_probe(probe_path(base), _probe(base), {"settings": {"steps": 3}})
    assert probe_path(base) == tmp_path / "base" / "block_probe.json"
    assert choose_blocks(base).blocks == {"content": ("a.b",), "style": ("c.d",)}
    assert choose_blocks(base).probe == _probe(base)
    write_block_probe(probe_path(base), _probe(base, base_hash="0" * 64), {})  # other weights: it says nothing of these
    assert read_block_probe(base) is None
    probe_path(base).write_text(json.dumps({"format": "something else"}))
    with pytest.raises(BaseModelError, match="make it again with `studio probe-blocks`"):
        read_block_probe(base)
