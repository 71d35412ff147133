"""B-LoRA in a plan: the same pictures as `studio stylize`, and what is no B-LoRA acts whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from studio.pipelines.adapters import Adapter, AdapterInfo, new_lora, patched
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError
from studio.pipelines.generation import draw_latents
from studio.workflows.stylize import StylizeWishes, plan_stylize
from tests.support.scenes import PROMPT, compiled_for, drawn, latents_of, lora
from tests.support.tiny_bases import tiny_base

CONTENT, STYLE = "mid_block.attentions.0", "up_blocks.2.attentions.0"
BLOCKS = {"content": (CONTENT,), "style": (STYLE,)}
ROLES = [{"role": "subject"}, {"role": "style"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("embedded", tmp_path_factory.mktemp("base"))


def b_lora(base: BaseModel, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    targets = {"unet": rf"({CONTENT}|{STYLE})\..*to_[qkv]".replace(".att", r"\.att")}
    adapter = new_lora(base.components(), targets, 2, 2.0, generator=generator)
    for name, tensor in adapter.named_tensors().items():
        tensor.requires_grad_(False)
        if name.endswith("up"):
            nn.init.normal_(tensor, 0.0, 0.3, generator=generator)
    return Adapter(AdapterInfo(name=f"b{seed}", family="embedded", role_blocks=BLOCKS), adapter.patches)


def stylized(base: BaseModel, scene: Any, **wishes: Any) -> Tensor:
    """What `studio stylize` draws."""
    plan = plan_stylize(base, StylizeWishes(prompt=PROMPT, **wishes))
    request = replace(scene.request, block_prompts={stack: (text,) for stack, text in plan.block_prompts.items()})
    with torch.no_grad(), patched(base.components(), plan.routes):
        return draw_latents(base, request)


@pytest.mark.parametrize(
    ("entries", "settings", "wishes"),
    [
        ([{"strength": 0.8}, {"strength": 1.1}], {}, {}),
        ([{"prompt": "a cat"}, {"prompt": "ink"}], {}, {"content_prompt": "a cat", "style_prompt": "ink"}),
        ([{}, {"prompt": "ink"}], {"keep_colours": 0.45}, {"keep_colours": True, "style_prompt": "ink"}),
    ],
    ids=["halves", "prompts", "colours"],
)
def test_it_draws_what_stylize_draws(base: BaseModel, entries: Any, settings: Any, wishes: Any):
    content, style = b_lora(base, 1), b_lora(base, 2)
    given = [role | entry for role, entry in zip(ROLES, entries, strict=True)]
    compiled = compiled_for(base, [content, style], {"name": "b-lora"} | settings, entries=given)
    strengths = {"content_strength": given[0].get("strength", 1.0), "style_strength": given[1].get("strength", 1.0)}
    expected = stylized(base, compiled.scene, content=content, style=style, **strengths, **wishes)
    torch.testing.assert_close(latents_of(compiled), expected, rtol=0, atol=0)
    assert compiled.notes == ()


def test_a_half_in_the_plan_is_that_half(base: BaseModel):
    both = [b_lora(base, 1), b_lora(base, 2)]
    by_role = drawn(base, both, "b-lora", entries=ROLES)
    by_half = drawn(base, both, "b-lora", entries=[{"half": "content"}, {"half": "style"}])
    assert torch.equal(by_role, by_half)
    swapped = drawn(base, both, "b-lora", entries=[{"half": "style"}, {"half": "content"}])
    assert not torch.equal(by_role, swapped)


def test_one_of_them_acts_whole_and_its_content_block_reads_its_prompt(base: BaseModel):
    adapter = b_lora(base, 1)
    plain, own = (drawn(base, [adapter], "b-lora", entries=[entry]) for entry in ({}, {"prompt": "ink"}))
    merged = drawn(base, [adapter], "merge")
    assert torch.equal(plain, merged) and not torch.equal(plain, own)


def test_what_is_no_b_lora_acts_whole_unless_it_is_cut(base: BaseModel):
    whole = lora(base, 3)
    whole = replace(whole, info=replace(whole.info, role_blocks=BLOCKS))
    adapters = [whole, b_lora(base, 2)]
    compiled = compiled_for(base, adapters, "b-lora", entries=ROLES)
    assert len(compiled.notes) == 1 and "entry 1 (1) is no B-LoRA" in compiled.notes[0]
    cut = compiled_for(base, adapters, {"name": "b-lora", "cut": True}, entries=ROLES)
    assert cut.notes == ()
    strategy: Any = cut.strategy
    assert all(path.module.startswith(CONTENT) for path in strategy.halves[0].route.adapter.patches)
    assert not torch.equal(latents_of(compiled), latents_of(cut))


def test_its_time_is_kept(base: BaseModel):
    adapters = [b_lora(base, 1), b_lora(base, 2)]
    content_only = drawn(base, adapters[:1], "merge", entries=[{"half": "content"}])
    late = [{"half": "content"}, {"half": "style", "active_from": 0.999}]
    assert torch.equal(drawn(base, adapters, "b-lora", entries=late), content_only)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"prompt": "ink"}, {}, {"role": "style"}], r"entry 1 \(1\) has a prompt of its own and acts whole"),
        ([{}, {"prompt": "cat"}, {"half": "content", "prompt": "ink"}], r"entry 2 \(2\) and entry 3 \(3\) have prompts"),
    ],
    ids=["nobody reads it", "two for one block"],
)
def test_prompts_without_a_block_of_their_own_are_refused(base: BaseModel, entries: Any, message: str):
    adapters = [lora(base, 3), b_lora(base, 1), b_lora(base, 2)]
    given = [{}, {"half": "content"}, {}]
    with pytest.raises(UserError, match=message):
        compiled_for(base, adapters, "b-lora", entries=[{**one, **two} for one, two in zip(given, entries, strict=True)])


def test_a_half_that_is_not_there_is_named_with_its_entry(base: BaseModel):
    adapter = b_lora(base, 1)
    content = {path: patch for path, patch in adapter.patches.items() if path.module.startswith(CONTENT)}
    only = Adapter(AdapterInfo(name="c", family="embedded", role_blocks=BLOCKS), content)
    with pytest.raises(UserError, match=r"entry 2 \(2\): The adapter 'c' has no style half"):
        compiled_for(base, [adapter, only], "b-lora", entries=ROLES)
