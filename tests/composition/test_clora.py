"""CLoRA: variants that share latents, a gradient that parts their words, masks that fuse what they predict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from studio.composition.drawing import Compiled
from studio.composition.strategies.clora import CloraStrategy
from studio.pipelines.adapters import Adapter
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Step
from studio.pipelines.errors import BaseModelError
from tests.support import scenes
from tests.support.scenes import compiled_for, drawn, kronecker, latents_of
from tests.support.tiny_bases import tiny_base

WORDS: list[dict[str, Any]] = [{"words": "cat"}, {"words": "dog"}]


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


def strategy_of(compiled: Compiled) -> CloraStrategy:
    assert isinstance(compiled.strategy, CloraStrategy)
    return compiled.strategy


@contextmanager
def gradients_seen(base: BaseModel) -> Iterator[list[bool]]:
    """For every pass whether it builds a graph."""
    seen: list[bool] = []
    unet: Any = base.unet
    handle = unet.conv_in.register_forward_pre_hook(
        lambda _, arguments: seen.append(torch.is_grad_enabled() and arguments[0].requires_grad)
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(("family", "scheduler"), [("sd15", "euler"), ("sdxl", "dpm++")])
def test_it_draws_both_structures_off_the_square_with_adapters_of_the_denoiser_alone(
    bases: dict[str, BaseModel], family: str, scheduler: str
):
    base = bases[family]
    adapters = [lora(base, 1, targets={"unet": r".*attn2\.to_[qkv]"}), kronecker(base, 2)]
    values: dict[str, Any] = {"height": 64, "width": 112, "scheduler": scheduler, "num_images": 2, "entries": WORDS}
    moved = drawn(base, adapters, "clora", **values)
    assert moved.shape == (2, 4, 8, 14) and torch.isfinite(moved).all()
    still = drawn(base, adapters, {"name": "clora", "step_size": 0.0}, **values)
    assert not torch.allclose(moved, still)
    second = drawn(base, adapters, "clora", **(values | {"num_images": 1, "seed": 1}))
    torch.testing.assert_close(moved[1:], second, rtol=1e-3, atol=1e-3)


def test_a_graph_is_built_on_steps_with_an_update_alone(base: BaseModel):
    settings = {"name": "clora", "update_until": 0.5, "repeat_at": [0.0], "repeats": 2}
    with gradients_seen(base) as seen:
        drawn(base, [lora(base, 1), lora(base, 2)], settings, entries=WORDS, steps=4)
    # One batch of three variants for each update: three at the first step, one at the second; each step has three passes.
    assert seen == [True] * 3 + [False] * 3 + [True] + [False] * 9
    with gradients_seen(base) as seen:
        drawn(base, [lora(base, 1), lora(base, 2)], {"name": "clora", "step_size": 0.0}, entries=WORDS)
    assert not any(seen)


def test_only_the_half_with_the_prompt_is_looked_at(base: BaseModel):
    compiled = compiled_for(base, [lora(base, 1), lora(base, 2)], "clora", entries=WORDS)
    branches = compiled.strategy.branches(Step(0, 2, torch.tensor(999)))
    assert [branch.capture is not None for branch in branches] == [False, True] * 3
    assert [len(branch.routes) for branch in branches] == [0, 0, 1, 1, 1, 1]


def test_a_style_acts_in_every_variant(base: BaseModel):
    style = WORDS + [{"role": "style"}]
    compiled = compiled_for(base, [lora(base, 1), lora(base, 2), lora(base, 3)], "clora", entries=style)
    passes = strategy_of(compiled).passes(Step(0, 2, torch.tensor(999)))
    assert [[route.adapter.info.name for route in each.routes] for each in passes] == [
        ["lora-3"],
        ["lora-3", "lora-1"],
        ["lora-3", "lora-2"],
    ]
    assert not compiled.notes
    wordless = compiled_for(base, [lora(base, 1), lora(base, 2)], "clora", entries=[{"words": "cat"}, {}])
    assert wordless.notes[-1] == "entry 2 (2) has no words in the prompt and no region; it acts everywhere."


def test_predictions_are_fused_by_masks(base: BaseModel):
    compiled = compiled_for(base, [lora(base, 1), lora(base, 2)], {"name": "clora", "masks_from": 0.3}, entries=WORDS)
    strategy = strategy_of(compiled)
    latents_of(compiled)
    places = [view.mask for view in strategy.views()]
    assert all(mask is not None and set(mask.unique().tolist()) <= {0.0, 1.0} and mask.any() for mask in places)
    cat, dog = (mask for mask in places if mask is not None)
    predictions = list(torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    late, early = Step(1, 2, torch.tensor(400)), Step(0, 2, torch.tensor(999))
    folded = strategy.fold(late, predictions)
    for row in range(8):
        for column in range(8):
            chosen = [index for index, mask in ((1, cat), (2, dog)) if mask[0, row, column]] or [0]
            expected = torch.stack([predictions[index][0, :, row, column] for index in chosen]).mean(dim=0)
            torch.testing.assert_close(folded[0, :, row, column], expected)
    torch.testing.assert_close(strategy.fold(early, predictions), torch.stack(predictions).mean(dim=0))


def test_a_region_stands_in_for_the_attention(base: BaseModel):
    whole = [{"words": "cat", "region": {"box": [0, 0, 1, 1]}}]
    adapter = lora(base, 1)
    torch.testing.assert_close(
        drawn(base, [adapter], "clora", entries=whole), drawn(base, [adapter], "merge"), rtol=1e-4, atol=1e-4
    )
    halves = [{"words": "cat", "region": {"box": [0, 0, 0.5, 1]}}, {"words": "dog", "region": {"box": [0.5, 0, 1, 1]}}]
    compiled = compiled_for(base, [lora(base, 1), lora(base, 2)], "clora", entries=halves)
    latents_of(compiled)
    masks = [view.mask for view in strategy_of(compiled).views()]
    assert masks[0] is not None and masks[1] is not None
    assert masks[0][..., :4].all() and not masks[0][..., 4:].any() and torch.equal(masks[1], 1 - masks[0])


def test_one_concept_has_nobody_to_be_told_apart_from(base: BaseModel):
    with gradients_seen(base) as seen:
        drawn(base, [lora(base, 1)], "clora", entries=[{"words": "cat"}])
    assert not any(seen)


def test_a_time_of_its_own_is_kept_to(base: BaseModel):
    entries = [{"words": "cat", "active_from": 0.5}, {"words": "dog"}]
    strategy = strategy_of(compiled_for(base, [lora(base, 1), lora(base, 2)], "clora", entries=entries))
    assert len(strategy.passes(Step(0, 2, torch.tensor(999)))) == 2
    assert len(strategy.passes(Step(1, 2, torch.tensor(100)))) == 3
    assert torch.isfinite(drawn(base, [lora(base, 1), lora(base, 2)], "clora", entries=entries, steps=3)).all()


@pytest.mark.parametrize("words", ["together", "apart"])
def test_one_variant_after_the_other_draws_the_same_picture(base: BaseModel, words: str):
    latents, usual = (
        drawn(
            base,
            [lora(base, 1), lora(base, 2)],
            {"name": "clora", "words": words, "one_by_one": one_by_one},
            entries=WORDS,
            steps=1,
        )
        for one_by_one in (True, False)
    )
    torch.testing.assert_close(latents, usual, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["clora", "lora-composer"])
def test_attention_that_shows_no_maps_is_refused_by_name(base: BaseModel, strategy: str):
    unet: Any = base.unet
    before = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    entries = [entry | {"region": {"box": [0, 0, 0.5, 1]}} for entry in WORDS[:1]]
    try:
        with pytest.raises(BaseModelError, match=rf"The strategy {strategy} needs torch's own attention.* with AttnProcessor:"):
            compiled_for(base, [lora(base, 1)], strategy, entries=entries)
    finally:
        unet.set_attn_processor(before)
