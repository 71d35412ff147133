"""Weights by the prompt's words, and what weighted switch and weighted composite make of them."""

from __future__ import annotations

import pytest
import torch

from studio.composition.prompt_weights import concept_weights
from studio.composition.strategies.composite import Composite, CompositeConfig
from studio.composition.strategies.weighted_switch import WeightedSwitch, WeightedSwitchConfig
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Step
from studio.pipelines.errors import UserError
from tests.support.scenes import lora, scene_for
from tests.support.tiny_bases import tiny_base

ATTENTION = {"unet": r".*attn2\.to_q"}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(request.param, tmp_path_factory.mktemp(request.param))


def test_weights_are_by_definition(base: BaseModel):
    adapters = [lora(base, seed, targets=ATTENTION) for seed in range(3)]
    scene = scene_for(base, adapters, entries=[{"words": "cat"}, {"words": "dog"}, {}])

    def vector(prompt: str) -> torch.Tensor:
        condition = scene.condition(prompt)
        end = base.tokenizers[0](prompt).input_ids.index(base.tokenizers[0].eos_token_id)
        return condition.prompt_embeds[0, end] if condition.pooled is None else condition.pooled[0]

    def cosine(first: str, second: str) -> float:
        return float(torch.cosine_similarity(vector(first), vector(second), dim=0))

    expected = [1 - cosine("a cat, a dog", other) for other in ("a , a dog", "a cat, a")]
    expected.append(sum(expected) / 2)
    found = concept_weights(scene, "prompt")
    assert found == pytest.approx([weight / sum(expected) for weight in expected], rel=1e-4)
    near = [max(0.0, cosine("a cat, a dog", words)) for words in ("cat", "dog")]
    trigger = concept_weights(scene, "trigger")
    assert trigger[0] * near[1] == pytest.approx(trigger[1] * near[0], rel=1e-4)
    assert concept_weights(scene, "equal") == [1 / 3] * 3


def test_the_identity_has_the_last_steps(base: BaseModel):
    adapters = [lora(base, seed, targets=ATTENTION) for seed in range(2)]
    scene = scene_for(base, adapters, entries=[{"role": "style", "name": "ink"}, {"name": "rex"}])
    strategy = WeightedSwitch().build(scene, WeightedSwitchConfig(weights="equal"))
    assert [concept.entry.title for concept in strategy.concepts] == ["rex", "ink"]
    timetable = strategy.make_timetable(45)
    assert timetable[-5:] == [0] * 5 and timetable[:40].count(0) == 20 and len(timetable) == 45
    assert strategy.make_timetable(8)[-2:] == [0, 0], "a quarter at most"
    chosen = WeightedSwitch().build(scene, WeightedSwitchConfig(identity="ink"))
    assert chosen.make_timetable(45)[-5:] == [1] * 5
    with pytest.raises(UserError, match="identity = 'max' is the name of no entry; there is rex, ink"):
        WeightedSwitch().build(scene, WeightedSwitchConfig(identity="max"))


def test_the_weighted_mean(base: BaseModel):
    adapters = [lora(base, seed, targets=ATTENTION) for seed in range(2)]
    scene = scene_for(base, adapters, entries=[{"words": "cat"}, {"words": "dog"}])
    strategy = Composite().build(scene, CompositeConfig(weights="prompt"))
    weights = concept_weights(scene, "prompt")
    step = Step(0, 2, torch.tensor(500))
    predictions = [torch.full((1, 4, 2, 2), value) for value in (1.0, 3.0)]
    folded = strategy.fold(step, predictions)
    torch.testing.assert_close(folded, torch.full((1, 4, 2, 2), weights[0] + 3 * weights[1]))
