"""LoRA-Composer: each of its parts does what it says, and can be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from studio.composition.drawing import Compiled
from studio.composition.strategies.lora_composer import LoraComposerStrategy
from studio.pipelines.adapters import Adapter
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Isolation, Step
from studio.pipelines.errors import UserError
from tests.support import scenes
from tests.support.scenes import compiled_for, drawn, kronecker, latents_of
from tests.support.tiny_bases import tiny_base

BOXED: list[dict[str, Any]] = [
    {"words": "cat", "region": {"box": [0, 0, 0.5, 1]}},
    {"words": "dog", "region": {"box": [0.5, 0, 1, 0.5]}},
]
BARE: dict[str, Any] = {"name": "lora-composer", "step_size": 0.0, "reinitialise": False, "isolation": False}
OFF: Mapping[str, Any] = {
    "injection": False,
    "isolation": False,
    "reinitialise": False,
    "settle_first": False,
    "enhancement_weight": 0.0,
    "fill_weight": 0.0,
    "region_weight": 0.0,
}


def lora(base: BaseModel, seed: int, **options: Any) -> Adapter:
    """A random LoRA on few layers: binding many takes longer than a tiny model's pass."""
    targets = {"unet": r".*(attn2\.(to_k|to_v|to_out\.0)|ff\.net\.2)", "text_encoder": r".*layers\.0.*q_proj"}
    return scenes.lora(base, seed, **{"targets": targets, **options})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    return {name: tiny_base(name, tmp_path_factory.mktemp(name)) for name in ("sd15", "sdxl")}


@pytest.fixture(scope="module")
def base(bases: dict[str, BaseModel]) -> BaseModel:
    return bases["sd15"]


def strategy_of(compiled: Compiled) -> LoraComposerStrategy:
    assert isinstance(compiled.strategy, LoraComposerStrategy)
    return compiled.strategy


@pytest.mark.parametrize(("family", "scheduler"), [("sd15", "euler"), ("sdxl", "dpm++")])
def test_it_draws_both_structures_off_the_square(bases: dict[str, BaseModel], family: str, scheduler: str):
    base = bases[family]
    adapters = [lora(base, 1), kronecker(base, 2)]
    values: dict[str, Any] = {"height": 64, "width": 112, "scheduler": scheduler, "num_images": 2, "entries": BOXED}
    both = drawn(base, adapters, "lora-composer", **values)
    assert both.shape == (2, 4, 8, 14) and torch.isfinite(both).all()
    second = drawn(base, adapters, "lora-composer", **(values | {"num_images": 1, "seed": 1}))
    torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-3)


def test_each_part_can_be_left_out_and_changes_the_picture(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    full = drawn(base, adapters, "lora-composer", entries=BOXED)
    for part, value in OFF.items():
        left_out = drawn(base, adapters, {"name": "lora-composer", part: value}, entries=BOXED)
        assert not torch.equal(left_out, full), part


def test_with_all_parts_left_out_it_is_the_merge(base: BaseModel):
    entries = [BOXED[0] | {"words": "cat"}]
    adapter = lora(base, 1)
    torch.testing.assert_close(
        drawn(base, [adapter], {"name": "lora-composer", **OFF}, entries=entries),
        drawn(base, [adapter], "merge"),
        rtol=0,
        atol=0,
    )


def test_with_regions_alone_it_is_regional(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    torch.testing.assert_close(
        drawn(base, adapters, BARE | {"region_prompt": "prompt"}, entries=BOXED),
        drawn(base, adapters, {"name": "regional", "isolation": "none"}, entries=BOXED),
        rtol=0,
        atol=0,
    )


def test_regions_do_not_see_each_other(base: BaseModel):
    step = Step(0, 2, torch.tensor(999))
    isolated = strategy_of(compiled_for(base, [lora(base, 1), lora(base, 2)], "lora-composer", entries=BOXED))
    for branch in isolated.branches(step):
        assert branch.isolation == Isolation() and len(branch.regions) == 2
    without_injection = {"name": "lora-composer", "injection": False}
    isolated = strategy_of(compiled_for(base, [lora(base, 1), lora(base, 2)], without_injection, entries=BOXED))
    for branch in isolated.branches(step):
        assert branch.isolation == Isolation() and [region.condition for region in branch.regions] == [None, None]
        assert len(branch.routes) == 2


def test_cross_attention_alone_acts_as_in_the_paper(base: BaseModel):
    paper = BARE | {"adapter": "cross-attention"}
    inside = {"unet": r".*attn2\.(to_k|to_v|to_out\.0)", "text_encoder": r".*q_proj"}
    plain = lora(base, 1, targets=inside)
    more = lora(base, 1, targets={"unet": r".*(attn1|ff|attn2\.to_q|conv1).*"})
    both = replace(plain, patches={**plain.patches, **more.patches})

    def picture(adapter: Adapter, settings: dict[str, Any]) -> torch.Tensor:
        return drawn(base, [adapter], settings, entries=BOXED[:1])

    assert torch.equal(picture(both, paper), picture(plain, paper))
    assert not torch.equal(picture(both, BARE), picture(plain, BARE))
    with pytest.raises(UserError, match=r"entry 1 \(1\) changes no keys, values or output projections"):
        picture(more, paper)


def test_regions_read_what_they_are_told_to(base: BaseModel):
    def prompts(settings: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
        compiled = compiled_for(base, [lora(base, 1), lora(base, 2)], settings, entries=entries)
        return [placed.prompt for placed in strategy_of(compiled).placed]

    articles = [BOXED[0] | {"words": "a cat"}, BOXED[1]]
    assert prompts(BARE, articles) == ["a cat, a dog"] * 2
    assert prompts(BARE | {"region_prompt": "variant"}, articles) == ["a cat, a dog", "cat, a dog"]
    assert prompts(BARE | {"region_prompt": "words"}, BOXED) == ["a cat", "a dog"]
    assert prompts(BARE, [BOXED[0] | {"prompt": "one cat"}, BOXED[1]]) == ["one cat", "a cat, a dog"]


def test_words_that_a_region_does_not_read_are_told(base: BaseModel):
    entries = [BOXED[0] | {"prompt": "a fish"}, BOXED[1]]
    compiled = compiled_for(base, [lora(base, 1), lora(base, 2)], "lora-composer", entries=entries)
    assert compiled.notes == ("entry 1 (1) has no words in what its region reads; no gradient puts it there.",)
    assert torch.isfinite(latents_of(compiled)).all()
    with pytest.raises(UserError, match=r"entry 1 \(1\) has a prompt of its own and no region"):
        compiled_for(base, [lora(base, 1)], "lora-composer", entries=[{"prompt": "a fish"}])


def test_a_picture_stops_moving_for_good_once_its_loss_has_risen(base: BaseModel):
    compiled = compiled_for(
        base,
        [lora(base, 1), lora(base, 2)],
        {"name": "lora-composer", "stop_from": 0.0, "update_until": 1.0},
        entries=BOXED,
        num_images=2,
    )
    strategy = strategy_of(compiled)
    latents_of(compiled)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    step = Step(1, 2, torch.tensor(400))
    strategy._moving = torch.tensor([True, True])
    strategy._last_losses = torch.tensor([-1.0, 100.0])
    moved = strategy.refine_latents(step, latents)
    assert torch.equal(moved[0], latents[0]) and not torch.equal(moved[1], latents[1])
    strategy._last_losses = torch.tensor([100.0, 100.0])
    again = strategy.refine_latents(step, latents)
    assert torch.equal(again[0], latents[0]) and not torch.equal(again[1], latents[1])


def test_rearranged_noise_has_the_statistics_of_the_noise(base: BaseModel):
    compiled = compiled_for(
        base, [lora(base, 1), lora(base, 2)], {"name": "lora-composer", "step_size": 0.0}, entries=BOXED, scheduler="euler"
    )
    seen: list[torch.Tensor] = []
    strategy = strategy_of(compiled)
    original = strategy.refine_latents
    strategy.refine_latents = lambda step, latents: (seen.append(latents), original(step, latents))[1]  # type: ignore[method-assign]
    latents_of(compiled)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    start = seen[0] / seen[0].std() * noise.std()
    torch.testing.assert_close(start.mean() - seen[0].mean() / seen[0].std() * noise.std(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert not torch.allclose(start, noise)
    sigma = seen[0].std() / noise.std()
    torch.testing.assert_close(seen[0].mean(), noise.mean() * sigma, rtol=1e-3, atol=1e-3)


def test_what_is_in_front_has_the_place(base: BaseModel):
    front = [
        {"words": "cat", "region": {"box": [0, 0, 1, 1], "z": 0}},
        {"words": "dog", "region": {"box": [0.5, 0, 1, 1], "z": 1}},
    ]
    compiled = compiled_for(base, [lora(base, 1), lora(base, 2)], "lora-composer", entries=front)
    strategy = strategy_of(compiled)
    behind, before = (strategy._targets[id(each)].mask for each in strategy.placed)
    assert behind[:, :4].all() and not behind[:, 4:].any() and torch.equal(before, 1 - behind)
    assert torch.isfinite(latents_of(compiled)).all()
    assert [view.title for view in strategy.views()] == ["entry 1 (1)", "entry 2 (2)"]
    assert all(view.attention is not None for view in strategy.views())
