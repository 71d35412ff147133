"""A plan meets its base and adapters: words become tokens, regions masks, and mistakes sentences that name the entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio.composition.regions import box_mask, region_masks
from studio.composition.spans import find_words, token_span
from studio.pipelines.adapters import Adapter
from studio.pipelines.base_model import BaseModel, embedded_base_dir
from studio.pipelines.errors import AdapterFileError, AdapterMismatchError, ImageError, MissingFileError, UserError
from tests.support.scenes import compiled_for, drawn, latents_of, lora, plan_for, scene_for
from tests.support.tiny_bases import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def embedded_tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(embedded_base_dir() / "tokenizer")


def tokens_of(tokenizer, prompt: str, words: str, occurrence: int = 1) -> list[str]:
    place = find_words(prompt, words, occurrence)
    assert place is not None
    span = token_span(tokenizer, prompt, place)
    ids = tokenizer(prompt).input_ids
    return [tokenizer.convert_ids_to_tokens(ids[n]) for n in span.tokens]


def test_tokens_come_from_offsets_not_from_blanks(embedded_tokenizer):
    prompt = "A zwxq's photo,  of an OHWX   Robot and a robot"
    assert tokens_of(embedded_tokenizer, prompt, "ohwx robot") == ["ohwx</w>", "robot</w>"]
    first = token_span(embedded_tokenizer, prompt, find_words(prompt, "robot") or (0, 0))
    second = token_span(embedded_tokenizer, prompt, find_words(prompt, "robot", 2) or (0, 0))
    assert second.tokens[0] > first.tokens[0] + 1
    assert tokens_of(embedded_tokenizer, prompt, "zwxq") == ["zw", "x", "q</w>"]  # a word of several tokens


def test_whole_words_only():
    assert find_words("two cats", "cat") is None
    assert find_words("a cat-like cat", "cat", 2) == (11, 14)
    assert find_words("a (cat)", "cat") == (3, 6)
    assert find_words("a cat", " ") is None


def test_words_past_the_end_are_told(base: BaseModel):
    with pytest.raises(UserError, match=r'entry 1 \(1\): The words "fish" stand past the 16 tokens'):
        scene_for(base, [lora(base, 1)], prompt="a cat and a dog and fish", entries=[{"words": "fish"}])


def test_trigger_words_bind_by_themselves(base: BaseModel):
    scene = scene_for(base, [lora(base, 1, trigger="cat"), lora(base, 2, trigger="fish")])
    assert [concept.words for concept in scene.concepts] == ["cat", None]
    assert scene.notes == ('entry 2 (2) answers to "fish", which is not in the prompt.',)
    both = scene_for(base, [lora(base, 1, trigger="cat"), lora(base, 2, trigger="cat")])
    assert [concept.words for concept in both.concepts] == ["cat", None]
    assert "answer to the same words" in both.notes[0]
    chosen = scene_for(base, [lora(base, 1, trigger="cat"), lora(base, 2, trigger="cat")], entries=[{}, {"words": "cat"}])
    assert [concept.words for concept in chosen.concepts] == [None, "cat"]


def test_an_adapter_of_another_family(base: BaseModel):
    foreign = lora(base, 1)
    foreign = Adapter(replace(foreign.info, family="sdxl"), foreign.patches)
    with pytest.raises(AdapterMismatchError, match=r"^entry 2 \(2\): The adapter .* was made for Stable Diffusion XL"):
        scene_for(base, [lora(base, 1), foreign])


def test_an_adapter_with_nan(base: BaseModel):
    broken = lora(base, 1).to(dtype=torch.float32)
    next(iter(broken.named_tensors().values())).view(-1)[0] = float("nan")
    with pytest.raises(AdapterFileError, match=r"^entry 1 \(1\): unet\..* has NaN or infinite values"):
        scene_for(base, [broken])


def test_a_half_that_is_not_there(base: BaseModel):
    with pytest.raises(UserError, match=r"^entry 1 \(1\): It is not known which blocks"):
        scene_for(base, [lora(base, 1)], entries=[{"half": "style"}])


def test_boxes_become_masks():
    left, right = box_mask((0, 0, 0.5, 1), 6, 8), box_mask((0.5, 0, 1, 1), 6, 8)
    assert torch.equal(left + right, torch.ones(6, 8)) and set(left.unique().tolist()) == {0.0, 1.0}
    quarter = box_mask((0.3, 0.25, 0.85, 0.75), 10, 10)
    assert float(quarter.sum()) == pytest.approx(0.55 * 0.5 * 100, abs=1e-4)  # half pixels count half
    soft = box_mask((0.25, 0, 1, 1), 40, 40, soft_edge=0.25)
    assert torch.equal(soft, soft.clamp(0, 1)) and float(soft[:, :10].max()) == 0.0
    assert torch.equal(soft[:, 20:], torch.ones(40, 20)), "the canvas's own border stays hard"
    assert bool((soft[0, 10:21].diff() >= 0).all())


def test_the_one_in_front_cuts_the_other():
    plan = plan_for(2, entries=[{"region": {"box": [0, 0, 0.75, 1], "z": 1}}, {"region": {"box": [0.5, 0, 1, 1], "z": 2}}])
    back, front = region_masks(plan, 4, 8)
    assert back is not None and front is not None
    assert torch.equal(front[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    assert torch.equal(back[0], torch.tensor([1.0] * 4 + [0.0] * 4))


def write_mask(path: Path, columns: slice, width: int = 64, height: int = 64) -> str:
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, columns] = 255
    Image.fromarray(pixels).save(path)
    return str(path)


def test_masks_are_pictures(tmp_path: Path):
    left, right = write_mask(tmp_path / "l.png", slice(0, 32)), write_mask(tmp_path / "r.png", slice(24, 64))
    (mask,) = region_masks(plan_for(1, entries=[{"region": {"mask": left}}]), 32, 32)
    assert mask is not None and torch.equal(mask, box_mask((0, 0, 0.5, 1), 32, 32))
    (soft,) = region_masks(plan_for(1, entries=[{"region": {"mask": left, "soft_edge": 0.1}}]), 32, 32)
    assert soft is not None and bool((soft <= mask).all()) and 0.0 < float(soft[5, 14]) < 1.0 and float(soft[5, 0]) == 1.0
    overlapping = plan_for(2, entries=[{"region": {"mask": left}}, {"region": {"mask": right}}])
    with pytest.raises(UserError, match=r"The regions of entry 1 \(1\) and entry 2 \(2\) overlap"):
        region_masks(overlapping, 64, 64)
    with pytest.raises(UserError, match=r"entry 1 \(1\): its mask l.png is 64×64, and the canvas 64×32"):
        region_masks(plan_for(1, entries=[{"region": {"mask": left}}]), 32, 64)
    with pytest.raises(MissingFileError, match=r"entry 1 \(1\): there is no mask"):
        region_masks(plan_for(1, entries=[{"region": {"mask": "none.png"}}]), 32, 32)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match="is not a readable picture"):
        region_masks(plan_for(1, entries=[{"region": {"mask": str(tmp_path / "text.png")}}]), 32, 32)
    empty = write_mask(tmp_path / "e.png", slice(0, 0))
    with pytest.raises(UserError, match="its region has no pixel"):
        region_masks(plan_for(1, entries=[{"region": {"mask": empty}}]), 32, 32)


def test_copies_of_one_adapter_are_that_adapter_to_the_last_bit(base: BaseModel):
    one, three = [lora(base, 1)], [lora(base, 1)] * 3
    alone = drawn(base, one, "merge")
    for strategy in ("composite", "switch", "weighted-switch"):
        assert torch.equal(drawn(base, three, strategy), alone), strategy
    words = {"entries": [{"words": "cat"}, {"words": "dog"}, {}]}
    weighted = drawn(base, three, {"name": "composite", "weights": "prompt"}, **words)
    torch.testing.assert_close(weighted, alone, rtol=0, atol=0)
    torch.testing.assert_close(drawn(base, three, "selma"), alone, rtol=1e-3, atol=2e-5)
    third = [{"strength": 1 / 3}] * 3
    torch.testing.assert_close(drawn(base, three, "merge", entries=third), alone, rtol=1e-3, atol=2e-5)


def test_the_merged_adapter_draws_what_the_sum_draws(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    together = drawn(base, adapters, "merge")
    exact = drawn(base, adapters, {"name": "merge", "method": "magnitude", "density": 1.0})
    torch.testing.assert_close(exact, together, rtol=1e-3, atol=1e-4)
    compressed = compiled_for(base, adapters, {"name": "merge", "rank": 1})
    assert "Compressed to rank 1" in compressed.notes[-1]
    assert not torch.allclose(latents_of(compressed), together, atol=1e-3)


def test_regression_runs_on_a_scene(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    settings = {"name": "merge", "method": "regression", "sample_steps": 1}
    assert torch.isfinite(drawn(base, adapters, settings)).all()
    equal = drawn(base, [adapters[0]] * 2, settings)
    torch.testing.assert_close(equal, drawn(base, [adapters[0]], "merge"), rtol=1e-3, atol=1e-4)


def test_switch_with_long_turns_is_the_first_adapter(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    first = drawn(base, adapters[:1], "merge")
    assert torch.equal(drawn(base, adapters, {"name": "switch", "steps_per_turn": 3}), first)
    assert not torch.equal(drawn(base, adapters, {"name": "switch", "steps_per_turn": 1}), first)
    roles = [{"role": "style"}, {"role": "subject"}]
    turned = drawn(base, adapters, {"name": "switch", "steps_per_turn": 3}, entries=roles)
    assert torch.equal(turned, drawn(base, adapters[1:], "merge")), "subjects begin"
    planned = drawn(base, adapters, {"name": "switch", "steps_per_turn": 3, "order": "plan"}, entries=roles)
    assert torch.equal(planned, first)


def test_time_on_the_noise_schedule(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    never_yet = [{}, {"active_from": 0.9999}]
    late = drawn(base, adapters, "merge", entries=never_yet)
    assert not torch.equal(late, drawn(base, adapters[:1], "merge")), "its text encoder's part acts all the same"
    unet_only = [lora(base, 1, targets={"unet": r".*attn.*"}), lora(base, 2, targets={"unet": r".*attn.*"})]
    for strategy in ("merge", "composite"):
        late = drawn(base, unet_only, strategy, entries=never_yet)
        assert torch.equal(late, drawn(base, unet_only[:1], strategy)), strategy
    none = drawn(base, unet_only[:1], "composite", entries=[{"active_from": 0.9999}])
    assert torch.equal(none, drawn(base, [], "merge"))
    with pytest.raises(UserError, match=r"entry 2 \(2\) acts for a part of the time only"):
        compiled_for(base, adapters, {"name": "merge", "method": "ties"}, entries=never_yet)


def test_what_a_region_cannot_hold_is_said(base: BaseModel):
    timed = lora(base, 1, targets={"unet": r".*time_emb_proj"})
    compiled = compiled_for(base, [timed], "merge", entries=[{"region": {"box": [0, 0, 0.5, 1]}}])
    assert any("left out: a region does not reach it" in note for note in compiled.notes)
    with pytest.raises(UserError, match=r"entry 1 \(1\) acts in a region only"):
        compiled_for(base, [lora(base, 1)], {"name": "merge", "rank": 2}, entries=[{"region": {"box": [0, 0, 0.5, 1]}}])
