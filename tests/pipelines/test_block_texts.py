"""Attention stacks that read a prompt of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studio.pipelines.base_model import BaseModel, encode_text
from studio.pipelines.denoising import attention_stacks, block_texts
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, draw_latents, resolve_request
from studio.pipelines.pictures import PictureRecord
from tests.support.outputs import fingerprint
from tests.support.tiny_bases import tiny_base
from tests.support.tiny_models import TinyModel, tiny_sdxl

STACKS = {"embedded": 7, "sdxl": 11, "sd15": 16}


@pytest.fixture(scope="module", params=["embedded", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(request.param, tmp_path_factory.mktemp(request.param))


def latents(base: BaseModel, block_prompts: dict[str, tuple[str, ...]], **changes: object) -> torch.Tensor:
    request = GenerationRequest(prompts=("a cat", "a red dog"), seeds=(1, 2), steps=2, block_prompts=block_prompts)
    with torch.no_grad():
        return draw_latents(base, resolve_request(base, replace(request, **changes)))


@pytest.mark.parametrize("name", STACKS)
def test_stacks_are_found_from_input_to_output(name: str, tmp_path: Path):
    stacks = attention_stacks(tiny_base(name, tmp_path).unet)
    assert len(stacks) == STACKS[name]
    places = [("down_blocks", "mid_block", "up_blocks").index(stack.split(".")[0]) for stack in stacks]
    assert places == sorted(places)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_same_words_in_every_stack_are_the_plain_picture_bit_for_bit(base: BaseModel, guidance_scale: float):
    plain = latents(base, {}, guidance_scale=guidance_scale)
    same = dict.fromkeys(attention_stacks(base.unet), ("a cat", "a red dog"))
    assert torch.equal(latents(base, same, guidance_scale=guidance_scale), plain)


def test_other_words_in_every_stack_are_a_picture_of_those_words(base: BaseModel):
    words = ("a boat at night", "a house")
    everywhere = latents(base, dict.fromkeys(attention_stacks(base.unet), words), guidance_scale=1.0)
    prompted = latents(base, {}, prompts=words, guidance_scale=1.0)
    if base.family.name == "sdxl":  # its pooled vector is read by the whole model and stays that of the prompt
        assert not torch.equal(everywhere, prompted)
    else:
        torch.testing.assert_close(everywhere, prompted, atol=1e-5, rtol=1e-5)


def test_each_row_has_its_own_words(base: BaseModel):
    """Only the second picture's words differ, so only the second picture does; also under guidance."""
    stack = attention_stacks(base.unet)[-1]
    plain = latents(base, {stack: ("a cat", "a red dog")})
    changed = latents(base, {stack: ("a cat", "a blue boat at night")})
    torch.testing.assert_close(changed[0], plain[0], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(changed[1], plain[1], atol=1e-4)


def test_only_the_named_stack_reads_it(base: BaseModel):
    stack, *others = attention_stacks(base.unet)
    seen: dict[str, torch.Tensor] = {}
    handles = [
        base.unet.get_submodule(name)
        .transformer_blocks[0]
        .attn2.register_forward_pre_hook(  # type: ignore[union-attr,index]
            lambda module, arguments, named, name=name: seen.update({name: named["encoder_hidden_states"]}), with_kwargs=True
        )
        for name in (stack, *others)
    ]
    latents(base, {stack: ("a boat", "a boat")}, guidance_scale=1.0, steps=1)
    for handle in handles:
        handle.remove()
    boat = encode_text(base, ["a boat"]).prompt_embeds[0]
    torch.testing.assert_close(seen[stack][0], boat, atol=1e-5, rtol=1e-5)
    assert all(not torch.allclose(seen[name][0], boat, atol=1e-3) for name in others)


def test_the_model_is_what_it_was_also_after_an_exception():
    model: TinyModel = tiny_sdxl()
    before = fingerprint(model)
    stack = attention_stacks(model.unet)[0]
    with pytest.raises(RuntimeError, match="stop"), block_texts(model.unet, {stack: torch.zeros(2, 16, 56)}):
        raise RuntimeError("stop")
    assert fingerprint(model) == before


def test_an_unknown_stack_is_a_sentence_with_the_nearest(base: BaseModel):
    with pytest.raises(
        UserError, match=r"no attention stack 'mid_block\.attention\.0'\. Did you mean mid_block\.attentions\.0\?"
    ):
        latents(base, {"mid_block.attention.0": ("a", "b")})
    with pytest.raises(UserError, match="a prompt for every picture: 2, not 1"):
        latents(base, {"mid_block.attentions.0": ("a",)})


def test_a_pictures_record_keeps_them(base: BaseModel):
    request = GenerationRequest(prompts=("a cat",), seeds=(1,), block_prompts={"mid_block.attentions.0": ("a boat",)})
    record = PictureRecord.of(base, resolve_request(base, request), 0)
    assert record.block_prompts == {"mid_block.attentions.0": "a boat"}
    assert PictureRecord.from_json(record.to_json()) == record
    plain = PictureRecord.of(base, resolve_request(base, replace(request, block_prompts={})), 0)
    assert plain.content_hash() != record.content_hash()
    assert "block_prompts" not in plain.to_json()
