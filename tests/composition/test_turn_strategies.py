"""Switch, composite and merge do what their papers say, step by step."""

from __future__ import annotations

import pytest
import torch

from studio.composition.strategies.composite import Composite, CompositeConfig
from studio.composition.strategies.switch import Switch, SwitchConfig
from studio.composition.strategy import mean_of, weighted_mean_of
from studio.pipelines.adapters import Route, patched
from studio.pipelines.adapters.merging import merge_all_into
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Step
from studio.pipelines.generation import draw_latents
from tests.support.scenes import compiled_for, drawn, kronecker, latents_of, lora, scene_for
from tests.support.tiny_bases import tiny_base

ATTENTION = {"unet": r".*attn2\.to_q"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("sd15"))


def acting(strategy: object, count: int) -> list[str]:
    """Who acts at each of `count` steps of a noise schedule."""
    names = {id(one): concept.entry.title for concept, one in ((c, strategy._passes[id(c)]) for c in strategy.concepts)}  # type: ignore[attr-defined]
    steps = [Step(index, count, torch.tensor(999 - index * 1000 // count)) for index in range(count)]
    return [names[id(strategy.passes(step)[0])] for step in steps]  # type: ignore[attr-defined]


def test_turns_are_the_papers_formula(base: BaseModel):
    scene = scene_for(base, [lora(base, n, targets=ATTENTION) for n in range(3)], entries=[{"name": name} for name in "abc"])
    strategy = Switch().build(scene, SwitchConfig())
    turns = acting(strategy, 40)
    assert turns == ["abc"[((step - 1) % 15) // 5] for step in range(1, 41)], "⌊((t − 1) mod kτ) / τ⌋ with t from 1 and τ = 5"
    assert acting(Switch().build(scene, SwitchConfig(steps_per_turn=1)), 6) == list("abcabc")


def test_one_whole_turn_is_the_first_adapter(base: BaseModel):
    adapters = [lora(base, 1), kronecker(base, 2)]
    switched = drawn(base, adapters, {"name": "switch", "steps_per_turn": 2}, entries=[{"strength": 0.7}, {}])
    compiled = compiled_for(base, adapters, "switch")
    with torch.no_grad(), patched(base.components(), [Route(adapters[0], 0.7)]):
        alone = draw_latents(base, compiled.scene.request)
    torch.testing.assert_close(switched, alone, rtol=0, atol=0)


def test_an_adapter_whose_time_is_over_is_passed_over(base: BaseModel):
    adapters = [lora(base, n, targets=ATTENTION) for n in range(2)]
    scene = scene_for(base, adapters, entries=[{"name": "a", "active_to": 0.5}, {"name": "b"}])
    assert acting(Switch().build(scene, SwitchConfig(steps_per_turn=1)), 8) == list("abab" + "bbbb")


@pytest.mark.parametrize("weights", ["equal", "prompt", "trigger"])
def test_copies_of_one_adapter_are_the_adapter(base: BaseModel, weights: str):
    adapter = lora(base, 1)
    words = [{"words": "cat"}, {"words": "dog"}, {}]
    strategy = {"name": "composite", "weights": weights}
    compiled = compiled_for(base, [adapter] * 3, strategy, entries=words)
    with torch.no_grad(), patched(base.components(), [Route(adapter)]):
        alone = draw_latents(base, compiled.scene.request)
    torch.testing.assert_close(latents_of(compiled), alone, rtol=0, atol=0)


def test_weights_of_zero_do_not_break_the_mean(base: BaseModel):
    """Words that change nothing weigh nothing; two of them at the front once divided zero by zero."""
    scene = scene_for(base, [lora(base, n, targets=ATTENTION) for n in range(3)])
    strategy = Composite().build(scene, CompositeConfig(weights="prompt"))
    predictions = [torch.full((1, 4, 2, 2), float(n)) for n in range(3)]
    step = Step(0, 2, torch.tensor(500))
    for weights, expected in (([0.0, 0.0, 1.0], 2.0), ([0.0, 0.0, 0.0], 1.0), ([0.5, 0.0, 0.5], 1.0)):
        strategy._weights = weights
        assert torch.equal(strategy.fold(step, predictions), torch.full((1, 4, 2, 2), expected))


def test_a_weighted_mean_with_equal_weights_is_the_mean_to_the_bit():
    predictions = list(torch.randn(5, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(weighted_mean_of(predictions, [0.1] * 5), mean_of(predictions))
    weights = [0.5, 3.0, 0.0, 1.0, 2.0]
    expected = sum(weight * one for weight, one in zip(weights, predictions, strict=True)) / sum(weights)
    torch.testing.assert_close(weighted_mean_of(predictions, weights), expected)


def test_a_merge_is_the_model_with_the_sum_in_its_weights(base: BaseModel):
    adapters = [lora(base, 1), kronecker(base, 2)]
    entries = [{"strength": 0.7}, {"strength": -0.4}]
    compiled = compiled_for(base, adapters, "merge", entries=entries)
    with torch.no_grad(), merge_all_into(base.components(), [(adapters[0], 0.7), (adapters[1], -0.4)]):
        alone = draw_latents(base, compiled.scene.request)
    torch.testing.assert_close(latents_of(compiled), alone, rtol=1e-4, atol=1e-4)
